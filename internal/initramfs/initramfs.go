// Package initramfs assembles the first root filesystem of a guest: the agent as /init, the kernel modules that reaching
// the disks and the host takes, and the order to load them in.
//
// It owns the archive's format and the resolution of module dependencies. It doesn't own where kernels or archives are
// kept, nor what the agent does.
package initramfs

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// Paths in the guest.
const (
	ListPath   = "/banger/modules.list" // the module files to load, in order, one absolute path a line
	modulesDir = "banger/modules"
)

// maxModule bounds an unpacked module, in bytes.
const maxModule = 64 << 20

// layout is the version of what Build writes; it is part of every key.
const layout = "1"

// Spec says what goes into an initramfs.
type Spec struct {
	AgentPath  string   // static executable on the host
	ModulesDir string   // as /lib/modules/<release>, with depmod's files; its last element names the kernel in errors
	Modules    []string // names of modules to load; those built into the kernel are skipped
}

// Key identifies the result of Build for a kernel and an agent given by their digests. It is safe as a file's name.
func Key(kernelDigest, agentDigest string, modules []string) string {
	h := sha256.New()
	for _, part := range append([]string{layout, kernelDigest, agentDigest}, modules...) {
		_, _ = fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// Build writes the archive, uncompressed: unpacking costs a guest without hardware virtualization more than reading. The
// same input makes the same bytes.
func Build(ctx context.Context, w io.Writer, spec Spec) error {
	files, err := Resolve(spec.ModulesDir, spec.Modules)
	if err != nil {
		return err
	}
	a := &archive{w: w}
	// The kernel opens /dev/console for init before anything is mounted. Errors stick to the archive.
	for _, d := range []string{"dev", "proc", "sys", "banger", modulesDir} {
		_ = a.dir(d)
	}
	_ = a.char("dev/console", 0o600, 5, 1)
	if err := addAgent(a, spec.AgentPath); err != nil {
		return err
	}
	var list strings.Builder
	for _, file := range files {
		content, err := readModule(ctx, filepath.Join(spec.ModulesDir, file))
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		name := path.Join(modulesDir, canonical(file)+".ko")
		_ = a.file(name, 0o644, content)
		list.WriteString("/" + name + "\n")
	}
	_ = a.file(strings.TrimPrefix(ListPath, "/"), 0o644, []byte(list.String()))
	return a.close()
}

func addAgent(a *archive, agentPath string) error {
	f, err := os.Open(agentPath)
	if err != nil {
		return fmt.Errorf("open guest agent: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read guest agent: %w", err)
	}
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil || !info.Mode().IsRegular() || string(magic[:]) != "\x7fELF" {
		return fault.New(fault.Invalid, "the guest agent %s is not an executable", agentPath)
	}
	return a.stream("init", 0o755, info.Size(), io.MultiReader(bytes.NewReader(magic[:]), f))
}

// readModule returns a module's content, unpacked: the guest's loader takes no compressed modules.
func readModule(ctx context.Context, file string) ([]byte, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch filepath.Ext(file) {
	case ".gz":
		if r, err = gzip.NewReader(bytes.NewReader(raw)); err != nil {
			return nil, err
		}
	case ".zst":
		d, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderMaxMemory(maxModule), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r = d
	case ".xz":
		xz, err := hostexec.Look("xz", "xz-utils")
		if err != nil {
			return nil, err
		}
		out, err := hostexec.Output(ctx, hostexec.Cmd{Path: xz, Args: []string{"-dc"}, Stdin: bytes.NewReader(raw)})
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(out)
	default:
		return raw, nil
	}
	content, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(content) > maxModule {
		err = errors.New("absurd size")
	}
	return content, err
}
