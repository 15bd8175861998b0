package guestagent

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
)

// ownership says who owns what is unpacked.
type ownership struct {
	keep     bool // who the archive says
	uid, gid int
	stay     bool // files that are there already stay as they are
}

// unpack writes the entries of an archive below root, and nowhere else: root refuses every path and link that leads out.
// Existing files are replaced, never written through; existing directories stay and get the archive's mode.
func unpack(root *os.Root, archive io.Reader, owner ownership) error {
	u := &unpacker{root: root, owner: owner, chown: os.Geteuid() == 0}
	r := tar.NewReader(archive)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, r); err != nil {
			return err
		}
	}
}

type unpacker struct {
	root  *os.Root
	owner ownership
	chown bool
	dirs  []*tar.Header // their modes and times are set last: a read-only one may still have to be filled
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := filepath.Clean(h.Name)
	if name == "." {
		return nil
	}
	if !filepath.IsLocal(name) {
		return fault.New(fault.Invalid, "the entry %q leads out of the directory", clip(h.Name, 200))
	}
	h.Name = name
	if h.Typeflag == tar.TypeDir {
		return u.dir(h)
	}
	if _, err := u.root.Lstat(name); err == nil && u.owner.stay {
		return nil
	}
	if err := u.clear(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(h, content)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(h)
	case tar.TypeLink:
		target := filepath.Clean(h.Linkname)
		if !filepath.IsLocal(target) {
			return fault.New(fault.Invalid, "the hard link %q leads out of the directory", clip(name, 200))
		}
		return u.root.Link(target, name)
	default:
		return fault.New(fault.Unsupported, "the entry %q is of type %q", clip(name, 200), h.Typeflag)
	}
}

// clear makes room for an entry: its parents exist, and nothing has its name.
func (u *unpacker) clear(name string) error {
	if parent := filepath.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	// An empty directory goes, too; one with content is refused here.
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (u *unpacker) dir(h *tar.Header) error {
	info, err := u.root.Lstat(h.Name)
	if err != nil || !info.IsDir() {
		if err := u.clear(h.Name); err != nil {
			return err
		}
		if err := u.root.Mkdir(h.Name, 0o700); err != nil {
			return err
		}
	}
	u.dirs = append(u.dirs, h)
	return u.own(h)
}

func (u *unpacker) file(h *tar.Header, content io.Reader) error {
	f, err := u.root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err = errors.Join(err, u.own(h)); err == nil {
		// After chown, which clears the set-user-id bit.
		err = f.Chmod(h.FileInfo().Mode())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return u.root.Chtimes(h.Name, time.Time{}, h.ModTime)
}

func (u *unpacker) own(h *tar.Header) error {
	uid, gid := u.owner.uid, u.owner.gid
	if u.owner.keep {
		uid, gid = h.Uid, h.Gid
	}
	if !u.chown {
		return nil
	}
	return u.root.Lchown(h.Name, uid, gid)
}

// finish sets what the directories' content would have changed, children first.
func (u *unpacker) finish() error {
	for _, h := range slices.Backward(u.dirs) {
		info, err := u.root.Lstat(h.Name)
		if err != nil || !info.IsDir() {
			continue // a later entry replaced it
		}
		if err := u.root.Chmod(h.Name, h.FileInfo().Mode()); err != nil {
			return err
		}
		if err := u.root.Chtimes(h.Name, time.Time{}, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}

// pack writes a file or a directory with all that is in it, named from the last element of path on. Sockets are left out,
// and so is what vanishes meanwhile.
func pack(ctx context.Context, w *tar.Writer, path string) error {
	if _, err := os.Lstat(path); err != nil {
		return err
	}
	base := filepath.Dir(path)
	links := map[inode]string{}
	return filepath.WalkDir(path, func(p string, entry fs.DirEntry, err error) error {
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
		name, err := filepath.Rel(base, p)
		if err != nil {
			return err
		}
		return packOne(ctx, w, p, name, info, links)
	})
}

// inode identifies a file that has more than one name.
type inode struct{ dev, ino uint64 }

func packOne(ctx context.Context, w *tar.Writer, path, name string, info fs.FileInfo, links map[inode]string) error {
	if info.Mode()&fs.ModeSocket != 0 {
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
		if first, seen := links[key]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.WriteHeader(h)
		}
		links[key] = name
	}
	if !info.Mode().IsRegular() {
		return w.WriteHeader(h)
	}
	f, err := os.Open(path)
	if err != nil {
		return ignoreVanished(err)
	}
	defer f.Close() //nolint:errcheck // only read
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	// The file may have shrunk or grown since; the entry has the size that was announced.
	_, err = io.CopyN(w, &padded{r: f, ctx: ctx}, h.Size)
	return err
}

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
