package images

import (
	"archive/tar"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/debian"
	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/rootfs"
)

// Entry is an entry of the catalogue: the recipe of an image.
type Entry struct {
	Name        string            `json:"-"`
	Description string            `json:"description"`
	Suite       string            `json:"suite"`
	Variant     string            `json:"variant"` // of mmdebstrap
	Packages    []string          `json:"packages"`
	Exclude     []string          `json:"exclude"` // globs of paths that packages don't get to install
	Mask        []string          `json:"mask"`    // systemd units that must not start
	Files       map[string]string `json:"files"`   // content by path
	Remove      []string          `json:"remove"`  // globs of paths
}

//go:embed catalog.json
var catalogJSON []byte

func catalog() (map[string]Entry, error) {
	var c map[string]Entry
	if err := json.Unmarshal(catalogJSON, &c); err != nil {
		return nil, fmt.Errorf("read image catalogue: %w", err)
	}
	for name, e := range c {
		e.Name = name
		c[name] = e
	}
	return c, nil
}

// Catalog returns what Ensure can make, by name.
func Catalog() ([]Entry, error) {
	entries, err := catalog()
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		out = append(out, entries[name])
	}
	return out, nil
}

// buildSpace is what a build needs on the disk, in bytes: the unpacked root (600 MB), apt's downloads and indexes (300 MB),
// and the image.
const buildSpace = 1200 << 20

// build makes an image and publishes it. The root filesystem streams from the builder into the image; there is no archive
// in between.
func (s *Store) build(ctx context.Context, e Entry, work string, sink progress.Sink) error {
	if err := checkSpace(work, buildSpace); err != nil {
		return err
	}
	scratch := filepath.Join(work, "build")
	if err := os.Mkdir(scratch, 0o755); err != nil { //nolint:gosec // mmdebstrap's helpers pass through it
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	built := make(chan error, 1)
	go func() {
		err := s.builder.Build(ctx, e, scratch, filepath.Join(s.logs, "image-"+e.Name+".log"), pw, sink)
		pw.CloseWithError(err) // nil means end of file
		built <- err
	}()
	file := filepath.Join(work, "root.ext4")
	hasSystemd := false
	info, err := rootfs.Convert(ctx, pr, file, rootfs.Options{Visit: func(h *tar.Header) {
		hasSystemd = hasSystemd || isSystemd(h)
	}})
	if err != nil {
		cancel(err)
	}
	pr.CloseWithError(io.ErrClosedPipe)
	// Whichever failed first is the reason; the other only met its end.
	if berr := <-built; berr != nil && (err == nil || errors.Is(err, berr)) {
		return berr
	}
	if err != nil {
		return err
	}
	return s.publish(ctx, e.Name, file, info.Digest, blobFile{
		Size: info.Size, Created: time.Now().UTC().Truncate(time.Second), Source: "catalog:" + e.Name, HasSystemd: hasSystemd,
	})
}

// isSystemd reports whether an entry is systemd's own binary, where every distribution has it.
func isSystemd(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg && (h.Name == "lib/systemd/systemd" || h.Name == "usr/lib/systemd/systemd")
}

func checkSpace(dir string, need int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("how much space is free: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need { //nolint:gosec // far from overflowing
		return fault.New(fault.Exhausted, "building an image needs %d MB of free space, %s has %d MB", need>>20, dir, free>>20).
			WithHint("free some space and try again")
	}
	return nil
}

// debianBuilder builds entries from the Debian archive.
type debianBuilder struct{}

func (debianBuilder) Build(ctx context.Context, e Entry, work, log string, w io.Writer, sink progress.Sink) error {
	recipe := debian.Recipe{
		Suite: e.Suite, Variant: e.Variant, Packages: e.Packages, Exclude: e.Exclude, Finish: finishScript(e),
	}
	return debian.New().Bootstrap(ctx, recipe, debian.Paths{Work: work, Log: log}, w, sink)
}

// finishScript is the shell script that turns an installed root, its first argument, into an image. The catalogue is part
// of this program: its globs are trusted, everything else is quoted.
func finishScript(e Entry) string {
	var b strings.Builder
	b.WriteString("set -e\nr=\"$1\"\n")
	for _, glob := range e.Remove {
		fmt.Fprintf(&b, "rm -rf -- \"$r\"%s\n", glob)
	}
	for _, file := range slices.Sorted(maps.Keys(e.Files)) {
		// What is there may be a link that leads out of the root.
		fmt.Fprintf(&b, "mkdir -p -- \"$r\"%[1]s\nrm -f -- \"$r\"%[2]s\nprintf %%s %[3]s >\"$r\"%[2]s\nchmod 0644 -- \"$r\"%[2]s\n",
			quote(path.Dir(file)), quote(file), quote(e.Files[file]))
	}
	for _, unit := range e.Mask {
		fmt.Fprintf(&b, "ln -sfn /dev/null \"$r\"%s\n", quote("/etc/systemd/system/"+unit))
	}
	return b.String()
}

// quote makes one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
