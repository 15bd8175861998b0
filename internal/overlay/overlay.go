// Package overlay reads the root filesystem of a guest that does not run: what the kernel's overlayfs showed it of a read-only
// image and of the directory with its changes, both in ext4 images that nobody has mounted. It writes that as a tar archive.
//
// It owns the meaning of overlayfs's marks (Documentation/filesystems/overlayfs.rst): whiteouts, opaque directories,
// redirects, copied-up metadata. It doesn't own what in a root is the guest's identity: its caller says so.
//
// The guest wrote what is read here, and could write the marks as well. They decide about the content of its own archive and
// nothing else; the number of entries and bytes is bounded, and therefore the time that it takes.
package overlay

import (
	"archive/tar"
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/fault"
)

// Default limits of an archive.
const (
	DefaultMaxEntries = 2 << 20
	DefaultMaxBytes   = 64 << 30
)

// Root says what a root filesystem consists of.
type Root struct {
	Base     *ext4.FS
	Upper    *ext4.FS            // where the changes are; nil: there are none
	UpperDir string              // directory in Upper that holds them
	Mounts   map[string]*ext4.FS // what was mounted over directories, by path: "root"
}

// Options say what is written.
type Options struct {
	// Restore are paths that are written as Base has them, or not at all if it doesn't.
	Restore []string
	// Rewrite changes the content of small files, by path.
	Rewrite map[string]func([]byte) []byte

	MaxEntries int   // 0: DefaultMaxEntries
	MaxBytes   int64 // of content; 0: DefaultMaxBytes
}

// WriteTar writes a root filesystem as a PAX archive: sorted, directories before what is in them, so that the same root gives
// the same bytes. Sockets and lost+found are left out. Files with several names are written once, the other names as links.
func WriteTar(ctx context.Context, w io.Writer, root Root, o Options) error {
	if o.MaxEntries == 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	top, err := root.top()
	if err != nil {
		return err
	}
	t := &writer{root: root, options: o, tar: tar.NewWriter(w), names: map[key]string{}, buf: make([]byte, 256<<10)}
	if err := t.write(ctx, ".", top); err != nil {
		return err
	}
	return t.tar.Close()
}

// node is a file as the guest saw it.
type node struct {
	fs *ext4.FS
	in *ext4.Inode

	lower    *ext4.Inode       // of a directory in the upper layer: the one of the base that shows through; nil: none
	upper    bool              // from the upper layer
	whiteout bool              // of a directory: its files may be whiteouts by attribute
	attrs    map[string]string // without overlayfs's own
	data     *ext4.Inode       // in the base, if only the metadata was copied up; else nil
}

// Marks of overlayfs are attributes with this prefix. The variant "user.overlay." counts for mounts that ask for it only;
// here it belongs to whoever made it, such as a container engine in the guest.
const (
	markPrefix   = "trusted.overlay."
	nestedPrefix = "trusted.overlay.overlay." // of an overlay in the guest on top of the guest's
	ownPrefix    = "trusted.banger."          // marks of the guest's agent
)

func (r Root) top() (*node, error) {
	base, err := r.Base.Root()
	if err != nil {
		return nil, err
	}
	if r.Upper == nil {
		return newNode(r.Base, base, false)
	}
	in, err := r.Upper.Lookup(r.UpperDir)
	if err != nil || !in.IsDir() {
		return nil, fault.New(fault.Corrupt, "the system disk has no directory %q: %w", r.UpperDir, err)
	}
	n, err := newNode(r.Upper, in, true)
	if err == nil {
		n.lower = base
	}
	return n, err
}

func newNode(fs *ext4.FS, in *ext4.Inode, upper bool) (*node, error) {
	all, err := fs.Xattrs(in)
	if err != nil {
		return nil, err
	}
	n := &node{fs: fs, in: in, upper: upper}
	for name, value := range all {
		if nested, ok := strings.CutPrefix(name, nestedPrefix); ok && upper {
			name = markPrefix + nested
		} else if strings.HasPrefix(name, markPrefix) || strings.HasPrefix(name, ownPrefix) {
			continue
		}
		if n.attrs == nil {
			n.attrs = map[string]string{}
		}
		n.attrs[name] = value
	}
	return n, nil
}

// child is a name in a directory.
type child struct {
	name string
	node *node
}

// children returns what is in a directory, sorted by name.
func (r Root) children(n *node) ([]child, error) {
	own, err := n.fs.ReadDir(n.in)
	if err != nil {
		return nil, err
	}
	var all []child
	lower := map[string]uint32{}
	if n.lower != nil {
		entries, err := r.Base.ReadDir(n.lower)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			lower[e.Name] = e.Inode
		}
	}
	shows := make(map[string]bool, len(lower))
	for name := range lower {
		shows[name] = true
	}
	for _, e := range own {
		delete(shows, e.Name)
		in, err := n.fs.Inode(e.Inode)
		if err != nil {
			return nil, err
		}
		c := child{name: e.Name}
		if n.upper {
			c.node, err = r.changed(n, e.Name, in, lower)
		} else {
			c.node, err = newNode(n.fs, in, false)
		}
		if err != nil {
			return nil, err
		}
		if c.node != nil {
			all = append(all, c)
		}
	}
	for name := range shows {
		in, err := r.Base.Inode(lower[name])
		if err != nil {
			return nil, err
		}
		below, err := newNode(r.Base, in, false)
		if err != nil {
			return nil, err
		}
		all = append(all, child{name, below})
	}
	slices.SortFunc(all, func(a, b child) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// changed returns the node of a file in the upper layer; nil if it is a whiteout. lower has the names of the directory of the
// base below.
func (r Root) changed(dir *node, name string, in *ext4.Inode, lower map[string]uint32) (*node, error) {
	if in.Type() == unix.S_IFCHR && in.Major == 0 && in.Minor == 0 {
		return nil, nil // a whiteout is nothing
	}
	n, err := newNode(r.Upper, in, true)
	if err != nil {
		return nil, err
	}
	marks, err := r.Upper.Xattrs(in)
	if err != nil {
		return nil, err
	}
	_, hidden := marks[markPrefix+"whiteout"]
	_, metadata := marks[markPrefix+"metacopy"]
	switch {
	case hidden && dir.whiteout && in.Type() == unix.S_IFREG && in.Size == 0:
		return nil, nil // as above
	case in.IsDir():
		opaque := marks[markPrefix+"opaque"]
		n.whiteout = opaque == "x"
		if opaque == "y" {
			return n, nil
		}
	case in.Type() != unix.S_IFREG || !metadata:
		return n, nil
	}
	below, err := r.below(cmp.Or(marks[markPrefix+"redirect"], name), lower)
	if err != nil {
		return nil, err
	}
	switch {
	case in.IsDir() && below != nil && below.IsDir():
		n.lower = below
	case in.IsDir():
	case below == nil || below.Type() != unix.S_IFREG:
		return nil, fault.New(fault.Corrupt, "the content of %.200q is not in the image", name)
	default:
		n.data = below
	}
	return n, nil
}

// below finds what a redirect means: a path from the root of the base, or another name in the directory; nil if it is not there.
func (r Root) below(redirect string, lower map[string]uint32) (*ext4.Inode, error) {
	if from, ok := strings.CutPrefix(redirect, "/"); ok {
		in, err := r.Base.Lookup(from)
		if fault.Is(err, fault.NotFound) {
			return nil, nil // not there
		}
		return in, err
	}
	number, ok := lower[redirect]
	if !ok {
		return nil, nil // not there
	}
	return r.Base.Inode(number)
}

// key identifies a file with several names.
type key struct {
	fs     *ext4.FS
	number uint32
}

// writer writes one archive.
type writer struct {
	root    Root
	options Options
	tar     *tar.Writer
	names   map[key]string // first names of files that have several
	buf     []byte
	entries int
	bytes   int64
}

// write writes a file and what is in it.
func (t *writer) write(ctx context.Context, name string, n *node) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := t.entry(ctx, name, n); err != nil {
		return fmt.Errorf("read %.200q: %w", name, err)
	}
	if !n.in.IsDir() {
		return nil
	}
	all, err := t.root.children(n)
	if err != nil {
		return fmt.Errorf("read directory %.200q: %w", name, err)
	}
	if t.entries += len(all); t.entries > t.options.MaxEntries {
		return fault.New(fault.Unsupported, "the root filesystem has more than %d files", t.options.MaxEntries)
	}
	for _, c := range all {
		below := path.Join(name, c.name)
		if len(below) > 4095 { // PATH_MAX
			return fault.New(fault.Corrupt, "a path has %d bytes", len(below))
		}
		n, err := t.replace(below, c.name, c.node)
		if err != nil {
			return fmt.Errorf("read %.200q: %w", below, err)
		}
		if n == nil {
			continue
		}
		if err := t.write(ctx, below, n); err != nil {
			return err
		}
	}
	return nil
}

// replace returns what is to be written at a path; nil: nothing.
func (t *writer) replace(at, name string, n *node) (*node, error) {
	_, parentMounted := t.root.Mounts[path.Dir(at)]
	switch {
	case n.in.Type() == unix.S_IFSOCK:
		return nil, nil // lives with its process only
	case name == "lost+found" && (path.Dir(at) == "." || parentMounted):
		return nil, nil // belongs to the filesystem, not to what is in it
	case t.root.Mounts[at] != nil && n.in.IsDir():
		in, err := t.root.Mounts[at].Root()
		if err != nil {
			return nil, err
		}
		return newNode(t.root.Mounts[at], in, false)
	case n.upper && slices.Contains(t.options.Restore, at):
		in, err := t.root.Base.Lookup(at)
		if fault.Is(err, fault.NotFound) {
			return nil, nil // the image does not have it
		}
		if err != nil {
			return nil, err
		}
		return newNode(t.root.Base, in, false)
	}
	return n, nil
}

// entry writes one file.
func (t *writer) entry(ctx context.Context, name string, n *node) error {
	h := &tar.Header{
		Name: name, Mode: int64(n.in.Mode & 0o7777), Uid: int(n.in.UID), Gid: int(n.in.GID), ModTime: n.in.Mtime, Format: tar.FormatPAX,
	}
	for attr, value := range n.attrs {
		if strings.Contains(attr, "=") {
			return fault.New(fault.Unsupported, "no archive can hold an extended attribute of the name %q", attr)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+attr] = value
	}
	if n.in.Links > 1 && !n.in.IsDir() {
		k := key{n.fs, n.in.Number}
		if first, ok := t.names[k]; ok {
			h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, first, nil
			return t.tar.WriteHeader(h)
		}
		t.names[k] = name
	}
	switch n.in.Type() {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		var err error
		if h.Linkname, err = n.fs.Readlink(n.in); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if n.in.Type() == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(n.in.Major), int64(n.in.Minor)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag = tar.TypeReg
		return t.file(ctx, h, n)
	default:
		return fault.New(fault.Corrupt, "it has the unknown type %#o", n.in.Type())
	}
	return t.tar.WriteHeader(h)
}

// maxRewrite is the size in bytes of the largest file that is rewritten; a larger one is not what the rewriter knows.
const maxRewrite = 1 << 20

// file writes a regular file.
func (t *writer) file(ctx context.Context, h *tar.Header, n *node) error {
	fs, in := n.fs, n.in
	if n.data != nil {
		fs, in = t.root.Base, n.data
	}
	content, err := fs.Open(in)
	if err != nil {
		return err
	}
	h.Size = in.Size
	if rewrite := t.options.Rewrite[h.Name]; rewrite != nil && n.upper && in.Size <= maxRewrite {
		old, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		changed := rewrite(old)
		h.Size, content = int64(len(changed)), strings.NewReader(string(changed))
	}
	if t.bytes += h.Size; t.bytes > t.options.MaxBytes || h.Size > t.options.MaxBytes {
		return fault.New(fault.Unsupported, "the root filesystem has more than %d bytes in files", t.options.MaxBytes)
	}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{t.tar}, contextReader{ctx, content}, t.buf)
	return err
}

// contextReader makes a reader fail when the context has ended.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
