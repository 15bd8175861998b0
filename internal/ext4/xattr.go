package ext4

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

const (
	xattrMagic    = 0xEA020000
	xattrHeader   = 32      // bytes before the first entry in a block
	xattrEntry    = 16      // bytes of an entry before its name
	maxXattrValue = 1 << 16 // bytes (XATTR_SIZE_MAX)
	maxXattrs     = 1 << 20 // bytes of all values of one file
	indexSystem   = 7
	inlineName    = "data" // of the attribute that holds what of a small file doesn't fit into its inode's i_block
)

// xattrPrefix returns what a name begins with (e_name_index).
func xattrPrefix(index byte) (string, bool) {
	prefixes := [...]string{
		1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", indexSystem: "system.",
		8: "system.richacl",
	}
	if int(index) >= len(prefixes) || prefixes[index] == "" {
		return "", false
	}
	return prefixes[index], true
}

// Xattrs returns a file's extended attributes as getxattr(2) does: access control lists are in the form of the system
// call, not of the disk. It returns nil if there are none.
func (f *FS) Xattrs(in *Inode) (map[string]string, error) {
	var attrs map[string]string
	total := 0
	err := f.eachXattr(in, func(index byte, name string, value func() ([]byte, error)) error {
		prefix, ok := xattrPrefix(index)
		if !ok {
			return corrupt("inode %d has an extended attribute of unknown kind %d", in.Number, index)
		}
		if index == indexSystem && name == inlineName {
			return nil
		}
		v, err := value()
		if err != nil {
			return err
		}
		if index == 2 || index == 3 {
			if v, err = accessList(v); err != nil {
				return err
			}
		}
		if total += len(v); total > maxXattrs {
			return corrupt("inode %d has more than %d bytes of extended attributes", in.Number, maxXattrs)
		}
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[prefix+name] = string(v)
		return nil
	})
	return attrs, err
}

// eachXattr visits what lies in the inode and then what lies in its block.
func (f *FS) eachXattr(in *Inode, visit func(index byte, name string, value func() ([]byte, error)) error) error {
	if len(in.xattrs) >= 4+4 && le32(in.xattrs) == xattrMagic {
		if err := f.xattrList(in, in.xattrs[4:], 0, visit); err != nil {
			return err
		}
	}
	if in.acl == 0 {
		return nil
	}
	p, err := f.readBlock(in.acl)
	if err != nil {
		return err
	}
	if le32(p) != xattrMagic || le32(p[8:]) != 1 { // h_blocks
		return corrupt("inode %d has a bad block of extended attributes", in.Number)
	}
	return f.xattrList(in, p, xattrHeader, visit)
}

// xattrList visits the entries that begin at a position of p; values lie in p, too.
func (f *FS) xattrList(
	in *Inode, p []byte, at int, visit func(index byte, name string, value func() ([]byte, error)) error,
) error {
	bad := corrupt("inode %d has bad extended attributes", in.Number)
	for {
		if at+4 > len(p) {
			return bad
		}
		if le32(p[at:]) == 0 {
			return nil
		}
		if at+xattrEntry > len(p) {
			return bad
		}
		e := p[at : at+xattrEntry]
		end := at + xattrEntry + int(e[0])
		if end > len(p) {
			return bad
		}
		name := string(p[at+xattrEntry : end])
		offset, size, inode := int(le16(e[2:])), int64(le32(e[8:])), le32(e[4:])
		if size > maxXattrValue {
			return bad
		}
		value := func() ([]byte, error) {
			if inode != 0 {
				return f.xattrInode(inode, size)
			}
			if offset+int(size) > len(p) {
				return nil, bad
			}
			return p[offset : offset+int(size)], nil
		}
		if err := visit(e[1], name, value); err != nil {
			return err
		}
		at = (end + 3) &^ 3
	}
}

// xattrInode returns a value that has an inode of its own.
func (f *FS) xattrInode(number uint32, size int64) ([]byte, error) {
	in, err := f.Inode(number)
	if err != nil {
		return nil, err
	}
	if in.flags&flagEAInode == 0 || in.flags&flagInline != 0 || in.Type() != unix.S_IFREG || in.Size != size {
		return nil, corrupt("inode %d does not hold an extended attribute of %d bytes", number, size)
	}
	r, err := f.content(in)
	if err != nil {
		return nil, err
	}
	value := make([]byte, size)
	_, err = io.ReadFull(r, value)
	return value, err
}

// inline returns the content of a file that lies in its inode.
func (f *FS) inline(in *Inode) (io.Reader, error) {
	data := in.block[:]
	if f.super.incompat&incompatInlineData == 0 {
		return nil, corrupt("inode %d has inline data, and the filesystem has no such feature", in.Number)
	}
	err := f.eachXattr(in, func(index byte, name string, value func() ([]byte, error)) error {
		if index != indexSystem || name != inlineName {
			return nil
		}
		more, err := value()
		data = append(data[:len(in.block):len(in.block)], more...)
		return err
	})
	if err != nil {
		return nil, err
	}
	if in.Size > int64(len(data)) {
		return nil, corrupt("inode %d has %d bytes, of which %d are there", in.Number, in.Size, len(data))
	}
	return bytes.NewReader(data[:in.Size]), nil
}

// accessList turns an access control list of the disk (fs/ext4/acl.h) into that of the system call
// (linux/posix_acl_xattr.h), which always has room for an id.
func accessList(p []byte) ([]byte, error) {
	const disk, call = 1, 2 // versions
	const user, group = 0x02, 0x08
	if len(p) < 4 {
		return nil, corrupt("an access control list of %d bytes", len(p))
	}
	if le32(p) == call {
		return p, nil // some writers of images store it so
	}
	if le32(p) != disk {
		return nil, corrupt("an access control list of version %d", le32(p))
	}
	le := binary.LittleEndian
	out := le.AppendUint32(nil, call)
	for p = p[4:]; len(p) > 0; {
		if len(p) < 4 {
			return nil, corrupt("an access control list that is cut off")
		}
		tag, id := le16(p), uint32(math.MaxUint32)
		out = append(out, p[:4]...)
		p = p[4:]
		if tag == user || tag == group {
			if len(p) < 4 {
				return nil, corrupt("an access control list that is cut off")
			}
			id, p = le32(p), p[4:]
		}
		out = le.AppendUint32(out, id)
	}
	return out, nil
}
