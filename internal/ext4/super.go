package ext4

import (
	"fmt"
	"hash/crc32"
	"strings"

	"banger/internal/fault"
)

// Features of a filesystem (s_feature_compat, s_feature_incompat, s_feature_ro_compat) that matter to a reader.
const (
	compatSparseSuper2 = 0x200

	incompatRecover    = 0x4
	incompatMetaBG     = 0x10
	incompat64Bit      = 0x80
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000

	roSparseSuper  = 0x1
	roMetadataCsum = 0x400
)

// incompatible has the names of the features that a reader must know, as dumpe2fs prints them.
var incompatible = [32]string{ //nolint:gochecknoglobals // a constant table
	0: "compression", 1: "filetype", 2: "needs_recovery", 3: "journal_dev", 4: "meta_bg", 6: "extent", 7: "64bit", 8: "mmp",
	9: "flex_bg", 10: "ea_inode", 12: "dirdata", 13: "metadata_csum_seed", 14: "large_dir", 15: "inline_data", 16: "encrypt",
	17: "casefold",
}

// known are the incompatible features that this package reads: all of the above but compression, journal_dev, dirdata,
// encrypt and casefold.
const known = 1<<1 | 1<<2 | 1<<4 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<13 | 1<<14 | 1<<15

const (
	superblockAt   = 1024 // bytes
	superblockSize = 1024
	magic          = 0xEF53
	rootInode      = 2
)

// superblock is what a reader needs of it.
type superblock struct {
	blockSize      int64
	blocks         uint64
	inodes         uint32
	blocksPerGroup uint32
	inodesPerGroup uint32
	inodeSize      uint16
	descSize       uint16
	firstDataBlock uint32
	firstMetaBG    uint32
	journal        uint32 // inode
	backups        [2]uint32
	compat         uint32
	incompat       uint32
	roCompat       uint32
}

func (s *superblock) needsRecovery() bool { return s.incompat&incompatRecover != 0 }

func readSuperblock(d device) (superblock, error) {
	var p [superblockSize]byte
	if d.size < superblockAt+superblockSize {
		return superblock{}, fault.New(fault.Invalid, "no ext4 filesystem: only %d bytes", d.size)
	}
	if err := d.read(p[:], superblockAt); err != nil {
		return superblock{}, err
	}
	if le16(p[0x38:]) != magic {
		return superblock{}, fault.New(fault.Invalid, "no ext4 filesystem: the magic number is missing")
	}
	s := superblock{
		inodes: le32(p[0x0:]), blocks: uint64(le32(p[0x4:])), firstDataBlock: le32(p[0x14:]),
		blocksPerGroup: le32(p[0x20:]), inodesPerGroup: le32(p[0x28:]), inodeSize: le16(p[0x58:]), descSize: 32,
		compat: le32(p[0x5C:]), incompat: le32(p[0x60:]), roCompat: le32(p[0x64:]), journal: le32(p[0xE0:]),
		firstMetaBG: le32(p[0x104:]), backups: [2]uint32{le32(p[0x24C:]), le32(p[0x250:])},
	}
	if err := s.checkFeatures(); err != nil {
		return superblock{}, err
	}
	if s.roCompat&roMetadataCsum != 0 && le32(p[0x3FC:]) != crc32c(^uint32(0), p[:0x3FC]) {
		return superblock{}, corrupt("the superblock's checksum is wrong")
	}
	if le32(p[0x4C:]) == 0 { // s_rev_level: good old revision
		s.inodeSize = 128
	}
	if s.incompat&incompat64Bit != 0 {
		s.blocks |= uint64(le32(p[0x150:])) << 32
		s.descSize = le16(p[0xFE:])
	}
	logBlockSize := le32(p[0x18:])
	if logBlockSize > 6 {
		return superblock{}, corrupt("block size 2^%d KiB", logBlockSize)
	}
	s.blockSize = 1024 << logBlockSize
	return s, s.check(d.size)
}

func (s *superblock) checkFeatures() error {
	var unknown []string
	for bit, name := range incompatible {
		if s.incompat&^uint32(known)&(1<<bit) == 0 {
			continue
		}
		if name == "" {
			name = fmt.Sprintf("number %d", bit)
		}
		unknown = append(unknown, name)
	}
	if len(unknown) > 0 {
		return fault.New(fault.Unsupported, "the ext4 filesystem has features that can't be read: %s", strings.Join(unknown, ", "))
	}
	return nil
}

// check refuses numbers that the rest of the package could not compute with.
func (s *superblock) check(size int64) error {
	bits := uint32(s.blockSize) * 8 // at most 64 KiB
	switch {
	case s.blocks == 0 || s.blocks > uint64(size/s.blockSize): // not negative
		return corrupt("%d blocks of %d bytes in an image of %d bytes", s.blocks, s.blockSize, size)
	case s.blocksPerGroup == 0 || s.inodesPerGroup == 0 || s.inodesPerGroup > bits:
		return corrupt("groups of %d blocks and %d inodes", s.blocksPerGroup, s.inodesPerGroup)
	case s.inodeSize < 128 || int64(s.inodeSize) > s.blockSize || s.inodeSize&(s.inodeSize-1) != 0:
		return corrupt("inodes of %d bytes", s.inodeSize)
	case s.descSize < 32 || s.descSize > 1024 || s.descSize&(s.descSize-1) != 0,
		s.incompat&incompat64Bit != 0 && s.descSize < 64:
		return corrupt("group descriptors of %d bytes", s.descSize)
	case uint64(s.firstDataBlock) >= s.blocks || s.firstDataBlock > 1:
		return corrupt("first data block %d", s.firstDataBlock)
	case uint64(s.inodes) > s.groups()*uint64(s.inodesPerGroup) || s.inodes < rootInode:
		return corrupt("%d inodes in %d groups of %d", s.inodes, s.groups(), s.inodesPerGroup)
	}
	return nil
}

func (s *superblock) groups() uint64 {
	return (s.blocks - uint64(s.firstDataBlock) + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
}

// inodeTable returns the first block of a group's inode table.
func (f *FS) inodeTable(group uint32) (uint64, error) {
	s := &f.super
	perBlock := uint32(s.blockSize) / uint32(s.descSize)                   // at most 64 KiB
	block := uint64(superblockAt/s.blockSize) + 1 + uint64(group/perBlock) // not negative
	if meta := group / perBlock; s.incompat&incompatMetaBG != 0 && meta >= s.firstMetaBG {
		// Each block of descriptors lies in the first group of those that it describes.
		first := meta * perBlock
		block = uint64(s.firstDataBlock) + uint64(first)*uint64(s.blocksPerGroup)
		if s.hasBackup(first) {
			block++
		}
		if first == 0 && s.blockSize == superblockAt && s.firstDataBlock == 0 {
			block++ // the superblock is in the second block
		}
	}
	if err := f.checkBlocks(block, 1); err != nil {
		return 0, err
	}
	desc := make([]byte, s.descSize)
	at := int64(block)*s.blockSize + int64(group%perBlock)*int64(s.descSize) // checked
	if err := f.dev.read(desc, at); err != nil {
		return 0, err
	}
	table := uint64(le32(desc[0x8:]))
	if s.descSize >= 64 {
		table |= uint64(le32(desc[0x28:])) << 32
	}
	return table, nil
}

// hasBackup reports whether a group begins with a copy of the superblock.
func (s *superblock) hasBackup(group uint32) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return group == s.backups[0] || group == s.backups[1]
	case group == 1 || s.roCompat&roSparseSuper == 0:
		return true
	case group%2 == 0:
		return false
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < uint64(group) {
			power *= base
		}
		if power == uint64(group) {
			return true
		}
	}
	return false
}

// crc32c continues a checksum as the kernel does: without the inversions at both ends that Go's package makes.
func crc32c(sum uint32, p []byte) uint32 {
	return ^crc32.Update(^sum, crc32.MakeTable(crc32.Castagnoli), p)
}
