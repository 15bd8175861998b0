package filetar

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
)

// Options say what an archive may do.
type Options struct {
	Owner *Owner // of what is unpacked; nil: whoever unpacks it
	Keep  bool   // leave files alone that are there already
	// Foreign is for an archive that somebody else may have made to do harm. No entry may lie behind a symbolic link, even one
	// that stays below the root; set-user-id bits and their like are dropped, devices and pipes left out, and files that
	// take up more than was sent for them (sparse entries) refused.
	Foreign bool
	LeftOut func(name string) // told of what Foreign leaves out; may be nil
}

// Owner says who owns what is unpacked.
type Owner struct {
	Archive  bool // who the archive says
	UID, GID int  // else these
}

// Unpack writes the entries of an archive below root, and nowhere else: root refuses every path and link that leads out.
// Existing files are replaced, never written through, and each appears when it is whole; existing directories stay and get
// the archive's mode.
func Unpack(root *os.Root, archive io.Reader, o Options) error {
	u := &unpacker{root: root, options: o, top: ".", as: "."}
	return u.all(tar.NewReader(archive))
}

type unpacker struct {
	root    *os.Root
	options Options
	top, as string         // the first element that all entries have, and what takes its place; ".": any, and none
	dirs    []directory    // their modes and times are set last: a read-only one may still have to be filled
	known   map[string]int // where in dirs a name is: an archive may repeat it for ever
	buf     []byte
}

type directory struct {
	name  string
	mode  fs.FileMode
	mtime time.Time
}

func (u *unpacker) all(r *tar.Reader) error {
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

// name returns where a name in the archive lies below the root.
func (u *unpacker) name(raw string) (string, error) {
	name := filepath.Clean(raw)
	if !filepath.IsLocal(name) {
		return "", fault.New(fault.Invalid, "the entry %q leads out of the directory", clip(raw))
	}
	if u.top == "." {
		return name, nil
	}
	first, rest, _ := strings.Cut(name, "/")
	if first != u.top {
		return "", fault.New(fault.Invalid, "the entry %q is no part of %q", clip(raw), clip(u.top))
	}
	return filepath.Join(u.as, rest), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := u.name(h.Name)
	if err != nil || name == "." {
		return err
	}
	if err := u.real(name); err != nil {
		return err
	}
	if u.options.Foreign && sparse(h) {
		return fault.New(fault.Unsupported, "the entry %q is a sparse file", clip(h.Name))
	}
	if h.Typeflag == tar.TypeDir {
		return u.dir(name, h)
	}
	info, err := u.root.Lstat(name)
	if err == nil && u.options.Keep {
		return nil
	}
	if err == nil && info.IsDir() { // an empty directory goes; one with content is refused here
		err = u.root.Remove(name)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = u.root.MkdirAll(filepath.Dir(name), 0o755)
	}
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.appear(name, h, func(tmp string) error { return u.file(tmp, h, content) })
	case tar.TypeSymlink:
		return u.appear(name, h, func(tmp string) error { return u.root.Symlink(h.Linkname, tmp) })
	case tar.TypeLink:
		return u.link(name, h)
	default:
		if u.options.Foreign {
			if u.options.LeftOut != nil {
				u.options.LeftOut(h.Name)
			}
			return nil
		}
		return fault.New(fault.Unsupported, "the entry %q is of type %q", clip(h.Name), h.Typeflag)
	}
}

// real refuses a foreign name that lies behind a symbolic link, or anything else that is no directory.
func (u *unpacker) real(name string) error {
	if !u.options.Foreign {
		return nil
	}
	for i, c := range name {
		if c != '/' {
			continue
		}
		switch info, err := u.root.Lstat(name[:i]); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !info.IsDir():
			return fault.New(fault.Invalid, "the entry %q lies behind %q, which is no directory", clip(name), clip(name[:i]))
		}
	}
	return nil
}

// sparse reports whether an entry stands for more bytes than it has.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// appear makes something under another name and then gives it its own, in the place of what has it.
func (u *unpacker) appear(name string, h *tar.Header, make func(tmp string) error) error {
	tmp := filepath.Join(filepath.Dir(name), ".banger-"+rand.Text())
	err := make(tmp)
	if err == nil {
		err = u.own(tmp, h)
	}
	if err == nil && h.Typeflag == tar.TypeReg {
		// After chown, which clears the set-user-id bit.
		if err = u.root.Chmod(tmp, u.mode(h)); err == nil {
			err = u.root.Chtimes(tmp, time.Time{}, h.ModTime)
		}
	}
	if err == nil {
		err = u.root.Rename(tmp, name)
	}
	if err != nil {
		_ = u.root.Remove(tmp)
	}
	return err
}

func (u *unpacker) file(tmp string, h *tar.Header, content io.Reader) error {
	f, err := u.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if u.buf == nil {
		u.buf = make([]byte, copySize)
	}
	_, err = io.CopyBuffer(onlyWriter{f}, onlyReader{content}, u.buf[:min(int64(len(u.buf)), max(h.Size, 512))])
	return errors.Join(err, f.Close())
}

// onlyReader hides the methods that make io.Copy bypass its buffer.
type onlyReader struct{ io.Reader }

// link gives a file of the archive one more name.
func (u *unpacker) link(name string, h *tar.Header) error {
	target, err := u.name(h.Linkname)
	if err != nil {
		return err
	}
	if err := u.real(target); err != nil {
		return err
	}
	if target == name {
		return fault.New(fault.Invalid, "the entry %q is a hard link to itself", clip(h.Name))
	}
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return u.root.Link(target, name)
}

func (u *unpacker) dir(name string, h *tar.Header) error {
	info, err := u.root.Lstat(name)
	if err != nil || !info.IsDir() {
		if err == nil {
			err = u.root.Remove(name)
		} else {
			err = u.root.MkdirAll(filepath.Dir(name), 0o755)
		}
		if err == nil {
			err = u.root.Mkdir(name, 0o700)
		}
		if err != nil {
			return err
		}
	}
	d := directory{name: name, mode: u.mode(h), mtime: h.ModTime}
	if at, ok := u.known[name]; ok {
		u.dirs[at] = d
	} else {
		if u.known == nil {
			u.known = map[string]int{}
		}
		u.known[name] = len(u.dirs)
		u.dirs = append(u.dirs, d)
	}
	return u.own(name, h)
}

func (u *unpacker) own(name string, h *tar.Header) error {
	o := u.options.Owner
	switch {
	case o == nil:
		return nil
	case o.Archive:
		return u.root.Lchown(name, h.Uid, h.Gid)
	default:
		return u.root.Lchown(name, o.UID, o.GID)
	}
}

func (u *unpacker) mode(h *tar.Header) fs.FileMode {
	if u.options.Foreign {
		return h.FileInfo().Mode().Perm()
	}
	return h.FileInfo().Mode()
}

// finish sets what the directories' content would have changed, children first.
func (u *unpacker) finish() error {
	for _, d := range slices.Backward(u.dirs) {
		info, err := u.root.Lstat(d.name)
		if err != nil || !info.IsDir() || u.real(d.name) != nil {
			continue // a later entry replaced it
		}
		if err := u.root.Chmod(d.name, d.mode); err != nil {
			return err
		}
		if err := u.root.Chtimes(d.name, time.Time{}, d.mtime); err != nil {
			return err
		}
	}
	return nil
}

// maxName is how many bytes of a name an error repeats.
const maxName = 200

func clip(s string) string {
	if len(s) > maxName {
		return s[:maxName] + "..."
	}
	return s
}
