// Package initramfs assembles the first root filesystem of a guest: the agent as /init, the kernel modules that reaching
// the disks and the host takes, and the order to load them in.
//
// It owns the archive's format and the resolution of module dependencies. It doesn't own where kernels or archives are
// kept, nor what the agent does.
package initramfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"banger/internal/fault"
	"banger/internal/kmod"
)

// Paths in the guest.
const (
	ListPath   = "/banger/modules.list" // the module files to load, in order, one absolute path a line
	modulesDir = "banger/modules"
)

// layout is the version of what Build writes; it is part of every key.
const layout = "1"

// Spec says what goes into an initramfs.
type Spec struct {
	AgentPath  string   // static executable on the host
	ModulesDir string   // as /lib/modules/<release>, with depmod's files; its last element names the kernel in errors; empty: none
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
	var files []string
	if spec.ModulesDir != "" {
		var err error
		if files, err = Resolve(spec.ModulesDir, spec.Modules); err != nil {
			return err
		}
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
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		content, err := kmod.Read(filepath.Join(spec.ModulesDir, file)) // unpacked: the guest's loader may take no packed ones
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		name := path.Join(modulesDir, kmod.Canonical(file)+".ko")
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
