package ext4

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"banger/internal/fault"
)

// Limits of one directory.
const (
	maxDirSize    = 256 << 20 // bytes of its blocks
	maxDirEntries = 1 << 20
)

// Entry is a name in a directory.
type Entry struct {
	Name  string // any bytes but / and zero
	Inode uint32
}

// ReadDir returns the names in a directory, without "." and "..", in the order of their bytes. Directories with an index
// need no treatment of their own: their index lies in what looks like unused entries.
func (f *FS) ReadDir(in *Inode) ([]Entry, error) {
	if !in.IsDir() {
		return nil, fault.New(fault.Invalid, "inode %d is not a directory", in.Number)
	}
	if in.Size > maxDirSize {
		return nil, fault.New(fault.Unsupported, "directory %d has %d bytes, more than %d can't be read", in.Number, in.Size, maxDirSize)
	}
	d := dirReader{fs: f, in: in}
	var err error
	if in.flags&flagInline != 0 {
		err = d.inline()
	} else {
		err = d.blocks()
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(d.entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	for i := range d.entries[:max(0, len(d.entries)-1)] {
		if d.entries[i].Name == d.entries[i+1].Name {
			return nil, corrupt("directory %d has the name %q twice", in.Number, d.entries[i].Name)
		}
	}
	return d.entries, nil
}

type dirReader struct {
	fs      *FS
	in      *Inode
	entries []Entry
}

func (d *dirReader) blocks() error {
	r := &reader{mapping: mapping{fs: d.fs, in: d.in}, size: d.in.Size}
	p := make([]byte, d.fs.super.blockSize)
	for {
		// A hole of a directory can be as large as it likes to be: step over it.
		if hole := r.hole() / int64(len(p)); hole > 0 {
			r.pos += hole * int64(len(p))
		}
		_, err := io.ReadFull(r, p)
		if err == io.EOF {
			return nil
		}
		if err == io.ErrUnexpectedEOF {
			return corrupt("directory %d has a broken last block", d.in.Number)
		}
		if err != nil {
			return err
		}
		if r.run.block == 0 {
			continue
		}
		if err := d.parse(p); err != nil {
			return err
		}
	}
}

// inline reads a directory that lies in its inode: the number of its parent, entries, and more entries in an attribute.
func (d *dirReader) inline() error {
	r, err := d.fs.inline(d.in)
	if err != nil {
		return err
	}
	p, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	n := len(d.in.block)
	if len(p) < 4 {
		return corrupt("directory %d is too short", d.in.Number)
	}
	if len(p) <= n {
		return d.parse(p[4:])
	}
	if err := d.parse(p[4:n]); err != nil {
		return err
	}
	return d.parse(p[n:])
}

// parse reads the entries of one block (struct ext4_dir_entry_2).
func (d *dirReader) parse(p []byte) error {
	whole := len(p)
	for len(p) > 0 {
		if len(p) < 8 {
			return corrupt("directory %d has an entry that is cut off", d.in.Number)
		}
		inode, length, name := le32(p), int(le16(p[4:])), int(p[6])
		if whole >= 1<<16 && (length == 0 || length == 1<<16-1) {
			length = 1 << 16 // does not fit into the field
		}
		if length < 8 || length%4 != 0 || length > len(p) || inode != 0 && 8+name > length {
			return corrupt("directory %d has a bad entry", d.in.Number)
		}
		if inode != 0 {
			if err := d.add(p[8:8+name], inode); err != nil {
				return err
			}
		}
		p = p[length:]
	}
	return nil
}

func (d *dirReader) add(name []byte, inode uint32) error {
	switch {
	case string(name) == "." || string(name) == "..":
		return nil
	case len(name) == 0 || bytes.ContainsAny(name, "/\x00"):
		return corrupt("directory %d has the bad name %q", d.in.Number, name)
	case inode > d.fs.super.inodes:
		return corrupt("%q in directory %d is inode %d of %d", name, d.in.Number, inode, d.fs.super.inodes)
	case len(d.entries) >= maxDirEntries:
		return fault.New(fault.Unsupported, "directory %d has more than %d entries", d.in.Number, maxDirEntries)
	}
	d.entries = append(d.entries, Entry{Name: string(name), Inode: inode})
	return nil
}
