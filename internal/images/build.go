package images

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/debian"
	"banger/internal/depot"
	"banger/internal/progress"
)

// Entry is an entry of the catalogue: the recipe of an image.
type Entry struct {
	Name        string            `json:"-"`
	Base        string            `json:"base"` // entry that this one adds to; empty: none
	Description string            `json:"description"`
	Suite       string            `json:"suite"`
	Variant     string            `json:"variant"` // of mmdebstrap
	Packages    []string          `json:"packages"`
	Exclude     []string          `json:"exclude"` // globs of paths that packages don't get to install
	Mask        []string          `json:"mask"`    // systemd units that must not start
	Files       map[string]string `json:"files"`   // content by path
	Remove      []string          `json:"remove"`  // globs of paths
	Bundle      *Bundle           `json:"bundle"`  // made elsewhere; then there is no recipe
}

// onTopOf returns the entry with all that its base has. Suite and variant are the entry's own if it has them.
func (e Entry) onTopOf(base Entry) Entry {
	e.Suite, e.Variant = cmp.Or(e.Suite, base.Suite), cmp.Or(e.Variant, base.Variant)
	e.Packages = slices.Concat(base.Packages, e.Packages)
	e.Exclude = slices.Concat(base.Exclude, e.Exclude)
	e.Mask = slices.Concat(base.Mask, e.Mask)
	e.Remove = slices.Concat(base.Remove, e.Remove)
	files := maps.Clone(base.Files)
	maps.Copy(files, e.Files)
	e.Files = files
	return e
}

// buildSpace is what a build needs on the disk, in bytes: the unpacked root (600 MB), apt's downloads and indexes (300 MB),
// and the image.
const buildSpace = 1200 << 20

// build makes an image of the catalogue present.
func (s *Store) build(ctx context.Context, e Entry, sink progress.Sink) (Image, error) {
	err := s.depot.Do(ctx, sink, depot.Job{
		Key:  fileOf(e.Name),
		Have: func() (bool, error) { return present(&s.shelf, e.Name), nil },
		Make: func(ctx context.Context, work string, sink progress.Sink) error {
			end := sink.Stage("build image " + e.Name)
			err := s.buildIn(ctx, e, work, sink)
			end(err)
			return err
		},
	})
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", e.Name, err)
	}
	return s.byName(e.Name)
}

func (s *Store) buildIn(ctx context.Context, e Entry, work string, sink progress.Sink) error {
	about := nameFile{Source: "catalog:" + e.Name}
	if e.Bundle != nil {
		return s.unbundle(ctx, work, e, sink)
	}
	if err := checkSpace(work, buildSpace); err != nil {
		return err
	}
	scratch := filepath.Join(work, "build")
	if err := os.Mkdir(scratch, 0o755); err != nil { // mmdebstrap's helpers pass through it
		return err
	}
	return s.add(ctx, work, content{name: e.Name, about: about, tar: func(ctx context.Context, w io.Writer) error {
		return s.builder.Build(ctx, e, scratch, filepath.Join(s.logs, "image-"+e.Name+".log"), w, sink)
	}})
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
