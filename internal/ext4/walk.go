package ext4

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// maxPath is the longest path in bytes (PATH_MAX).
const maxPath = 4095

// Lookup returns the file at a path below the root, such as "etc/passwd"; "." is the root itself. Symbolic links are not
// followed. What is not there is fault.NotFound.
func (f *FS) Lookup(path string) (*Inode, error) {
	in, err := f.Root()
	if err != nil || path == "." {
		return in, err
	}
	for name := range strings.SplitSeq(path, "/") {
		if in, err = f.Child(in, name); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// Child returns the file with a name in a directory. What is not there, or no directory, is fault.NotFound.
func (f *FS) Child(dir *Inode, name string) (*Inode, error) {
	if dir.IsDir() {
		entries, err := f.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Name == name {
				return f.Inode(e.Inode)
			}
		}
	}
	return nil, fault.New(fault.NotFound, "there is no %q in directory %d", name, dir.Number)
}

// Walk visits every file, beginning with the root as ".": a directory before what is in it, and that in the order of the
// names' bytes. If visit returns [fs.SkipDir] for a directory, what is in it is left out. No directory can be met twice.
func (f *FS) Walk(ctx context.Context, visit func(path string, in *Inode) error) error {
	root, err := f.Root()
	if err != nil {
		return err
	}
	w := walker{fs: f, visit: visit, seen: map[uint32]bool{}}
	return w.walk(ctx, ".", root)
}

type walker struct {
	fs    *FS
	visit func(path string, in *Inode) error
	seen  map[uint32]bool // directories
}

func (w *walker) walk(ctx context.Context, path string, in *Inode) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if in.Type() == 0 {
		return corrupt("%.200q is inode %d, which is not in use", path, in.Number)
	}
	err := w.visit(path, in)
	if in.IsDir() && errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil || in.Type() != unix.S_IFDIR {
		return err
	}
	if w.seen[in.Number] {
		return corrupt("directory %d has two places", in.Number)
	}
	w.seen[in.Number] = true
	entries, err := w.fs.ReadDir(in)
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := e.Name
		if path != "." {
			child = path + "/" + e.Name
		}
		if len(child) > maxPath {
			return corrupt("a path has more than %d bytes", maxPath)
		}
		in, err := w.fs.Inode(e.Inode)
		if err != nil {
			return err
		}
		if err := w.walk(ctx, child, in); err != nil {
			return err
		}
	}
	return nil
}
