package ext4

import (
	"io/fs"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Flags of an inode (i_flags).
const (
	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagEAInode   = 0x200000
	flagInline    = 0x10000000
)

// Inode is one file of any type. The zero value is of no use: see [FS.Root] and [FS.Inode].
type Inode struct {
	Number       uint32
	Mode         uint16 // type and permissions, as in stat(2): unix.S_IFMT and so on
	UID, GID     uint32
	Size         int64 // bytes
	Links        uint16
	Mtime        time.Time
	Major, Minor uint32 // of devices

	flags  uint32
	block  [60]byte // i_block
	xattrs []byte   // what lies in the inode behind its fields
	acl    uint64   // block of extended attributes; 0: none
}

// Type returns the type bits of the mode: unix.S_IFREG, unix.S_IFDIR, ...
func (in *Inode) Type() uint16 { return in.Mode & unix.S_IFMT }

// IsDir reports whether it is a directory.
func (in *Inode) IsDir() bool { return in.Type() == unix.S_IFDIR }

// Root returns the root directory.
func (f *FS) Root() (*Inode, error) {
	in, err := f.Inode(rootInode)
	if err == nil && !in.IsDir() {
		err = corrupt("the root is not a directory")
	}
	return in, err
}

// Inode returns a file by its number.
func (f *FS) Inode(number uint32) (*Inode, error) {
	s := &f.super
	if number == 0 || number > s.inodes {
		return nil, corrupt("inode %d of %d", number, s.inodes)
	}
	table, err := f.inodeTable((number - 1) / s.inodesPerGroup)
	if err != nil {
		return nil, err
	}
	offset := uint64((number-1)%s.inodesPerGroup) * uint64(s.inodeSize)
	if err := f.checkBlocks(table, offset/uint64(s.blockSize)+1); err != nil { // positive
		return nil, err
	}
	p := make([]byte, s.inodeSize)
	if err := f.dev.read(p, int64(table)*s.blockSize+int64(offset)); err != nil { // checked
		return nil, err
	}
	return s.parseInode(number, p)
}

func (s *superblock) parseInode(number uint32, p []byte) (*Inode, error) {
	in := &Inode{
		Number: number, Mode: le16(p), Links: le16(p[0x1A:]), flags: le32(p[0x20:]),
		UID: uint32(le16(p[0x2:])) | uint32(le16(p[0x78:]))<<16,
		GID: uint32(le16(p[0x18:])) | uint32(le16(p[0x7A:]))<<16,
		acl: uint64(le32(p[0x68:])),
	}
	if s.incompat&incompat64Bit != 0 {
		in.acl |= uint64(le16(p[0x76:])) << 32
	}
	copy(in.block[:], p[0x28:])
	size := uint64(le32(p[0x4:]))
	if t := in.Type(); t == unix.S_IFREG || t == unix.S_IFDIR && s.incompat&incompatLargeDir != 0 {
		size |= uint64(le32(p[0x6C:])) << 32
	}
	if size > math.MaxInt64-1<<20 {
		return nil, corrupt("inode %d has %d bytes", number, size)
	}
	in.Size = int64(size)
	var mtimeExtra uint32
	if len(p) > 128+4 {
		extra := int(le16(p[0x80:]))
		if extra > len(p)-128 || extra%4 != 0 {
			return nil, corrupt("inode %d has %d bytes of extra fields", number, extra)
		}
		if extra >= 0x8C-0x80 {
			mtimeExtra = le32(p[0x88:])
		}
		in.xattrs = p[128+extra:]
	}
	in.Mtime = timestamp(le32(p[0x10:]), mtimeExtra)
	in.Major, in.Minor = device32(le32(in.block[0:]), le32(in.block[4:]))
	if in.flags&flagEncrypted != 0 {
		return nil, fault.New(fault.Unsupported, "inode %d is encrypted", number)
	}
	return in, nil
}

// timestamp joins the two halves of a time: the lower two bits of extra continue the seconds, the others are nanoseconds.
func timestamp(seconds, extra uint32) time.Time {
	s := int64(int32(seconds)) + int64(extra&3)<<32 // meant to be signed
	return time.Unix(s, int64(min(extra>>2, 999_999_999))).UTC()
}

// device32 decodes a device number: in the first word in the old way, or in the second in the new.
func device32(old, wide uint32) (major, minor uint32) {
	if old != 0 {
		return old >> 8 & 0xFF, old & 0xFF
	}
	return wide & 0xFFF00 >> 8, wide&0xFF | wide>>12&0xFFF00
}

// FileMode returns type and permissions as the standard library writes them.
func (in *Inode) FileMode() fs.FileMode {
	mode := fs.FileMode(in.Mode & 0o777)
	for bit, flag := range map[uint16]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if in.Mode&bit != 0 {
			mode |= flag
		}
	}
	switch in.Type() {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	}
	return mode
}
