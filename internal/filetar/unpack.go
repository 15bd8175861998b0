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
	"strconv"
	"strings"
	"syscall"
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
	u := &unpacker{parent: parent{root: root}, options: o, top: ".", as: "."}
	defer u.parent.leave()
	return u.all(tar.NewReader(archive))
}

type unpacker struct {
	parent
	options Options
	top, as string         // the first element that all entries have, and what takes its place; ".": any, and none
	dirs    []directory    // their modes and times are set last: a read-only one may still have to be filled
	known   map[string]int // where in dirs a name is: an archive may repeat it for ever
	tmp     string         // with which temporary names begin
	made    int            // how many temporary names there have been
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
	dir, err := u.enter(filepath.Dir(name))
	if err != nil {
		return err
	}
	info, err := dir.Lstat(filepath.Base(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case u.options.Keep:
		return nil
	case info.IsDir(): // an empty directory goes; one with content is refused here
		if err := dir.Remove(filepath.Base(name)); err != nil {
			return err
		}
	}
	if err == nil && !info.Mode().IsRegular() {
		// What goes may be on the way to the directory that is open. The entry's own is as good as before.
		defer u.leave()
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.appear(dir, name, func(tmp string) error { return u.file(dir, tmp, h, content) })
	case tar.TypeSymlink:
		return u.appear(dir, name, func(tmp string) error {
			return errors.Join(dir.Symlink(h.Linkname, tmp), u.own(dir, tmp, h))
		})
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
	if !u.options.Foreign || u.inside(filepath.Dir(name)) {
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

// appear makes something under another name and then gives it its own, in the place of what has it. dir is the directory
// that it lies in.
func (u *unpacker) appear(dir *os.Root, name string, make func(tmp string) error) error {
	if u.tmp == "" {
		u.tmp = ".banger-" + rand.Text() + "-"
	}
	u.made++
	tmp := u.tmp + strconv.Itoa(u.made)
	err := make(tmp)
	if err == nil {
		err = dir.Rename(tmp, filepath.Base(name))
	}
	if err != nil {
		_ = dir.Remove(tmp)
	}
	return err
}

func (u *unpacker) file(dir *os.Root, tmp string, h *tar.Header, content io.Reader) error {
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, u.mode(h).Perm())
	if err != nil {
		return err
	}
	if u.buf == nil {
		u.buf = make([]byte, copySize)
	}
	_, err = io.CopyBuffer(onlyWriter{f}, onlyReader{content}, u.buf[:min(int64(len(u.buf)), max(h.Size, 512))])
	if err == nil {
		err = u.finishFile(f, h)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return dir.Chtimes(tmp, time.Time{}, h.ModTime)
}

// finishFile sets owner and mode where they are not right already: each change of an inode costs a guest under software
// emulation more than looking does.
func (u *unpacker) finishFile(f *os.File, h *tar.Header) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	mode := u.mode(h)
	chowned := false
	if uid, gid, ok := u.owner(h); ok {
		if st, is := info.Sys().(*syscall.Stat_t); !is || int(st.Uid) != uid || int(st.Gid) != gid {
			if err := f.Chown(uid, gid); err != nil {
				return err
			}
			chowned = true
		}
	}
	if chowned || info.Mode() != mode { // chown clears the set-user-id bit
		return f.Chmod(mode)
	}
	return nil
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
	u.leave()
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return u.root.Link(target, name)
}

func (u *unpacker) dir(name string, h *tar.Header) error {
	info, err := u.root.Lstat(name)
	if err != nil || !info.IsDir() {
		if err == nil {
			u.leave()
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
	return u.own(u.root, name, h)
}

func (u *unpacker) own(dir *os.Root, name string, h *tar.Header) error {
	if uid, gid, ok := u.owner(h); ok {
		return dir.Lchown(name, uid, gid)
	}
	return nil
}

// owner returns who is to own an entry; ok is false if that is left to the kernel.
func (u *unpacker) owner(h *tar.Header) (uid, gid int, ok bool) {
	o := u.options.Owner
	switch {
	case o == nil:
		return 0, 0, false
	case o.Archive:
		return h.Uid, h.Gid, true
	default:
		return o.UID, o.GID, true
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
