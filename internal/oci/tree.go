package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
)

// Bounds of one entry of an archive.
const (
	maxName    = 255             // bytes in one component of a path
	maxPath    = 4095            // bytes in a path or in the target of a symbolic link (PATH_MAX)
	maxLinks   = 40              // symbolic links on the way to one entry, as in Linux
	maxID      = 1<<32 - 2       // the last one means "no change"
	maxContent = 1 << 40         // bytes in one file
	maxSteps   = 1 << 26         // nodes that may be visited in all: an archive can make each entry visit all others
	maxMemory  = 512 << 20       // bytes for names, link targets, attributes and nodes
	nodeCost   = 256             // bytes of memory for a node and what belongs to it, about
	xattrKey   = "SCHILY.xattr." // PAX records with extended attributes
	whiteout   = ".wh."          // OCI image specification, layer.md
	opaque     = whiteout + ".wh..opq"
	aufsOwn    = whiteout + whiteout // bookkeeping of AUFS
)

// node is a name in the tree. Several names may share an inode.
type node struct {
	name     string
	parent   *node // nil: the root
	children map[string]*node
	inode    *inode
	layer    int32 // the last one that named it
	length   int32 // bytes of its path
}

// inode is what a name stands for.
type inode struct {
	kind         byte // as in tar.Header.Typeflag: TypeReg, TypeDir, TypeSymlink, TypeChar, TypeBlock, TypeFifo
	mode         uint32
	uid, gid     uint32
	major, minor uint32
	layer, entry int32 // where its content is
	size         int64
	seconds      int64
	nanos        int32
	planned      bool // one of its names has its place in the archive that is written
	target       string
	xattrs       map[string]string // keys of PAX records
}

func (n *node) isDir() bool { return n.inode.kind == tar.TypeDir }

// path returns the node's path from the root, without a slash at either end; empty for the root.
func (n *node) path() string {
	buf := make([]byte, n.length)
	for at := len(buf); n.parent != nil; n = n.parent {
		at -= len(n.name)
		copy(buf[at:], n.name)
		if at > 0 {
			at--
			buf[at] = '/'
		}
	}
	return string(buf)
}

// tree is a root filesystem without its contents. Layers are applied to it from the lowest to the highest.
type tree struct {
	root    *node
	limits  limits
	literal bool // names have no meaning: there are no whiteouts
	steps   int
}

func newTree(l limits, literal bool) *tree {
	t := &tree{limits: l, literal: literal}
	t.root = &node{inode: implicit(), children: map[string]*node{}}
	return t
}

// implicit is a directory that no entry describes.
func implicit() *inode { return &inode{kind: tar.TypeDir, mode: 0o755} }

// Why a path leads nowhere.
var (
	errTarget = errors.New("its target is not there")
	errNotDir = errors.New("it is not a directory")
)

// apply adds one entry of a layer: number entry in it, from 0.
func (t *tree) apply(layer, entry int32, h *tar.Header) error {
	if t.limits.entries--; t.limits.entries < 0 {
		return fault.New(fault.Invalid, "the image has too many entries")
	}
	if err := t.applyEntry(layer, entry, h); err != nil {
		if fault.KindOf(err) != fault.Internal {
			return err
		}
		return fault.New(fault.Invalid, "bad archive entry %.200q: %w", h.Name, err)
	}
	return nil
}

func (t *tree) applyEntry(layer, entry int32, h *tar.Header) error {
	name, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	if !t.literal && strings.HasPrefix(base, whiteout) {
		return t.remove(layer, dir, base)
	}
	in, err := t.describe(layer, entry, h)
	if err != nil {
		return err
	}
	if name == "" {
		if in == nil || in.kind != tar.TypeDir {
			return errors.New("the root is not a directory")
		}
		t.root.inode, t.root.layer = in, layer
		return nil
	}
	if in == nil { // looked up before the name it gets may go
		if in, err = t.linked(h.Linkname); err != nil {
			return err
		}
	}
	parent, err := t.walk(dir, layer, true)
	if err != nil {
		return err
	}
	if old := parent.children[base]; old != nil {
		old.layer = layer
		if in.kind != tar.TypeDir || !old.isDir() {
			old.children = nil
			if in.kind == tar.TypeDir {
				old.children = map[string]*node{}
			}
		}
		old.inode = in
		return nil
	}
	return t.add(parent, base, layer, in)
}

// add makes a new name.
func (t *tree) add(parent *node, name string, layer int32, in *inode) error {
	length := parent.length + int32(len(name)) // at most 4095 + 255
	if parent.parent != nil {
		length++
	}
	if length > maxPath {
		return errors.New("the path is too long")
	}
	if err := t.charge(nodeCost + len(name)); err != nil {
		return err
	}
	n := &node{name: strings.Clone(name), parent: parent, inode: in, layer: layer, length: length}
	if in.kind == tar.TypeDir {
		n.children = map[string]*node{}
	}
	parent.children[n.name] = n
	return nil
}

func (t *tree) charge(bytes int) error {
	if t.limits.memory -= int64(bytes); t.limits.memory < 0 {
		return fault.New(fault.Invalid, "the image has too many names and attributes")
	}
	return nil
}

func (t *tree) step() error {
	if t.steps++; t.steps > maxSteps {
		return fault.New(fault.Invalid, "the image is too intricate")
	}
	return nil
}

// walk finds a directory as a process inside the image would: symbolic links are followed and can't lead out of the root.
// What is missing is made if layer is to have it; otherwise the result is nil.
func (t *tree) walk(dir string, layer int32, create bool) (*node, error) {
	at := t.root
	for links := 0; dir != ""; {
		part, rest, _ := strings.Cut(dir, "/")
		dir = rest
		if err := t.step(); err != nil {
			return nil, err
		}
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			if at.parent != nil {
				at = at.parent
			}
			continue
		case len(part) > maxName: // in a link's target
			return nil, errors.New("name longer than 255 bytes")
		}
		next := at.children[part]
		if next == nil {
			if !create {
				return nil, nil
			}
			if err := t.add(at, part, layer, implicit()); err != nil {
				return nil, err
			}
			next = at.children[part]
		}
		switch next.inode.kind {
		case tar.TypeDir:
			at = next
		case tar.TypeSymlink:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("too many symbolic links on the way, the last is %.200q", next.path())
			}
			if strings.HasPrefix(next.inode.target, "/") {
				at = t.root
			}
			dir = next.inode.target + "/" + dir
		default:
			return nil, fmt.Errorf("%.200q: %w", next.path(), errNotDir)
		}
	}
	return at, nil
}

// linked finds what a hard link is made to. A symbolic link is a target itself; those on the way to it are followed.
func (t *tree) linked(target string) (*inode, error) {
	name, err := cleanPath(target)
	if err != nil {
		return nil, fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	dir, base := path.Split(name)
	parent, err := t.walk(dir, 0, false)
	if err != nil {
		return nil, fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	if parent == nil || parent.children[base] == nil {
		return nil, fmt.Errorf("hard link to %.200q: %w", target, errTarget)
	}
	if n := parent.children[base]; !n.isDir() {
		return n.inode, nil
	}
	return nil, fmt.Errorf("hard link to the directory %.200q", target)
}

// remove applies a whiteout. It is about lower layers only, wherever in its layer it stands.
func (t *tree) remove(layer int32, dir, base string) error {
	if base != opaque && strings.HasPrefix(base, aufsOwn) {
		return nil
	}
	parent, err := t.walk(dir, layer, false)
	if errors.Is(err, errNotDir) { // umoci writes one for each file of a directory that has become a file
		return nil
	}
	if err != nil || parent == nil {
		return err
	}
	if base == opaque {
		return t.hideChildren(parent, layer)
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return errors.New("a whiteout of nothing")
	}
	n := parent.children[name]
	if n == nil {
		return nil
	}
	keep, err := t.hide(n, layer)
	if !keep && err == nil {
		delete(parent.children, name)
	}
	return err
}

// hide takes away what lower layers have at and below a node, and reports whether anything is left of it.
func (t *tree) hide(n *node, layer int32) (keep bool, err error) {
	if n.isDir() {
		if err := t.hideChildren(n, layer); err != nil {
			return false, err
		}
	}
	if n.layer != layer && len(n.children) > 0 {
		n.inode, n.layer = implicit(), layer
	}
	return n.layer == layer, nil
}

func (t *tree) hideChildren(n *node, layer int32) error {
	for name, child := range n.children {
		if err := t.step(); err != nil {
			return err
		}
		keep, err := t.hide(child, layer)
		if err != nil {
			return err
		}
		if !keep {
			delete(n.children, name)
		}
	}
	return nil
}

// describe returns the inode that an entry makes, or nil if it is a hard link.
func (t *tree) describe(layer, entry int32, h *tar.Header) (*inode, error) {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > maxID || int64(h.Gid) > maxID {
		return nil, fmt.Errorf("owner %d:%d out of range", h.Uid, h.Gid)
	}
	in := &inode{
		kind: h.Typeflag, mode: uint32(h.Mode & 0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid), // checked
		layer: layer, entry: entry, seconds: h.ModTime.Unix(), nanos: int32(h.ModTime.Nanosecond()), // < 1e9
	}
	switch h.Typeflag {
	case tar.TypeLink:
		return nil, nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if h.Size < 0 || h.Size > maxContent {
			return nil, errors.New("absurd size")
		}
		in.kind, in.size = tar.TypeReg, h.Size
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
			return nil, errors.New("bad target of a symbolic link")
		}
		in.target = strings.Clone(h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
			return nil, errors.New("device number out of range")
		}
		in.major, in.minor = uint32(h.Devmajor), uint32(h.Devminor) // checked
	case tar.TypeDir, tar.TypeFifo:
	default:
		return nil, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	cost := len(in.target)
	for key, value := range h.PAXRecords {
		if !strings.HasPrefix(key, xattrKey) {
			continue
		}
		if in.xattrs == nil {
			in.xattrs = map[string]string{}
		}
		in.xattrs[key] = value
		cost += nodeCost + len(key) + len(value)
	}
	return in, t.charge(cost)
}

// header describes the node in the archive that is written.
func (n *node) header() *tar.Header {
	in := n.inode
	h := &tar.Header{
		Typeflag: in.kind, Name: n.path(), Linkname: in.target, Size: in.size, Mode: int64(in.mode), Uid: int(in.uid), Gid: int(in.gid),
		ModTime: time.Unix(in.seconds, int64(in.nanos)), Devmajor: int64(in.major), Devminor: int64(in.minor),
		PAXRecords: in.xattrs, Format: tar.FormatPAX,
	}
	switch {
	case n.parent == nil:
		h.Name = "./"
	case in.kind == tar.TypeDir:
		h.Name += "/"
	}
	return h
}

// sorted returns the children of a directory by name.
func (n *node) sorted() []*node {
	list := make([]*node, 0, len(n.children))
	for _, c := range n.children {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	return list
}

// cleanPath returns a path from the root, without slashes at its ends; empty for the root itself. Leading slashes are
// dropped, as tar does; a component ".." is refused, not resolved.
func cleanPath(name string) (string, error) {
	if name == "" || len(name) > maxPath {
		return "", errors.New("empty or too long name")
	}
	if strings.ContainsRune(name, 0) {
		return "", errors.New("zero byte in name")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("path leads out of the root")
		}
		if len(part) > maxName {
			return "", errors.New("name longer than 255 bytes")
		}
	}
	return strings.Trim(path.Clean("/"+name), "/"), nil
}
