// Package filetar makes tar streams of files and directories and makes files and directories of tar streams, with modes,
// times and links. It owns what an archive may do to the directory that it is unpacked in, and the rules by which a copy
// gets its name; it does not own where archives come from. Host and guest share it. Extended attributes, and the holes of
// sparse files, are not kept.
package filetar

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// PackOptions say how Pack goes about it.
type PackOptions struct {
	Name    string            // of the first entry, with which all others begin; empty: the last element of the path; ".": none
	Follow  bool              // if the path is a symbolic link, pack what it points to
	Plain   bool              // leave out what is neither file, directory nor symbolic link
	LeftOut func(path string) // told of what Plain leaves out; may be nil
}

// Pack writes a file, or a directory with all that is in it. Sockets are left out, and so is what vanishes meanwhile.
func Pack(ctx context.Context, w *tar.Writer, path string, o PackOptions) error {
	if o.Follow {
		var err error
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	if o.Name == "" {
		o.Name = filepath.Base(path)
	}
	p := &packer{w: w, options: o, links: map[inode]string{}, buf: make([]byte, copySize)}
	return filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return ignoreVanished(err)
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreVanished(err)
		}
		rel, err := filepath.Rel(path, at)
		if err != nil {
			return err
		}
		return p.entry(ctx, at, filepath.Join(o.Name, rel), info)
	})
}

// copySize is how many bytes are read from a file at a time.
const copySize = 256 << 10

type packer struct {
	w       *tar.Writer
	options PackOptions
	links   map[inode]string // names of files that have more than one
	buf     []byte
}

// inode identifies a file.
type inode struct{ dev, ino uint64 }

func (p *packer) entry(ctx context.Context, path, name string, info fs.FileInfo) error {
	switch typ := info.Mode().Type(); {
	case p.options.Plain && typ&^(fs.ModeDir|fs.ModeSymlink) != 0:
		if p.options.LeftOut != nil {
			p.options.LeftOut(path)
		}
		return nil
	case typ == fs.ModeSocket:
		return nil
	}
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return ignoreVanished(err)
		}
	}
	h, err := tar.FileInfoHeader(numeric{info}, target)
	if err != nil {
		return err
	}
	h.Format = tar.FormatPAX
	h.Name = name
	if info.IsDir() && !strings.HasSuffix(name, "/") {
		h.Name += "/"
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && info.Mode().IsRegular() {
		key := inode{st.Dev, st.Ino}
		if first, seen := p.links[key]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.w.WriteHeader(h)
		}
		p.links[key] = name
	}
	if !info.Mode().IsRegular() {
		return p.w.WriteHeader(h)
	}
	return p.file(ctx, path, h)
}

func (p *packer) file(ctx context.Context, path string, h *tar.Header) error {
	// Not what somebody has put in its place meanwhile, which may block or lead elsewhere.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ignoreVanished(err)
	}
	defer f.Close() //nolint:errcheck // only read
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	// The file may have shrunk or grown since; the entry has the size that was announced.
	_, err = io.CopyBuffer(onlyWriter{p.w}, io.LimitReader(&padded{r: f, ctx: ctx}, h.Size), p.buf)
	return err
}

// onlyWriter hides the methods that make io.Copy bypass its buffer.
type onlyWriter struct{ io.Writer }

func ignoreVanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// numeric keeps tar from looking names up: they mean nothing elsewhere, and ids are what is kept.
type numeric struct{ fs.FileInfo }

func (numeric) Uname() (string, error) { return "", nil }
func (numeric) Gname() (string, error) { return "", nil }

// padded is a file that is followed by zeros without end.
type padded struct {
	r    io.Reader
	ctx  context.Context //nolint:containedctx // for one copy
	done bool
}

func (p *padded) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if p.done {
		clear(b)
		return len(b), nil
	}
	n, err := p.r.Read(b)
	if errors.Is(err, io.EOF) {
		p.done, err = true, nil
	}
	return n, err
}
