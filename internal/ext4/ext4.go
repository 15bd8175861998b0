// Package ext4 reads ext4 filesystem images that nobody has mounted: trees of files with their owners, modes, times, links,
// devices and extended attributes. It writes nothing: if the image has a journal that was not replayed, because the machine
// that had it mounted was killed, the journal's blocks are laid over the image in memory.
//
// Images come from guests, which are hostile. Every number in one is checked before it is used, no structure is followed
// more often than it can be there, and what is kept in memory is bounded by constants, not by what the image says. A damaged
// image gives errors of kind fault.Corrupt, one with features that this package doesn't know fault.Unsupported.
//
// The format is that of the kernel's Documentation/filesystems/ext4. Names of fields in comments are those used there.
package ext4

import (
	"encoding/binary"
	"errors"
	"io"

	"banger/internal/fault"
)

// FS is a filesystem image. It may be used by several goroutines at once.
type FS struct {
	dev   device
	super superblock
}

// Open looks at an image of size bytes. It reads the superblock and, if it has to be replayed, the journal.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{dev: device{r: r, size: size}}
	var err error
	if f.super, err = readSuperblock(f.dev); err != nil {
		return nil, err
	}
	if !f.super.needsRecovery() {
		return f, nil
	}
	if err := f.replay(); err != nil {
		return nil, err
	}
	// The journal may hold a newer one.
	if f.super, err = readSuperblock(f.dev); err != nil {
		return nil, err
	}
	return f, nil
}

// Recovered reports whether blocks of a journal lie over the image.
func (f *FS) Recovered() bool { return len(f.dev.replayed) > 0 }

// device is the image, with the blocks of its journal laid over it.
type device struct {
	r         io.ReaderAt
	size      int64 // bytes
	blockSize int64
	replayed  map[uint64]journalBlock // by the number of the block that it replaces
}

// journalBlock is where the new content of a block lies.
type journalBlock struct {
	at      uint64 // block number in the image
	escaped bool   // its first four bytes are the journal's magic number, and stored as zeros
}

// read fills p from a position. What lies outside of the image is damage.
func (d device) read(p []byte, at int64) error {
	if at < 0 || at > d.size || int64(len(p)) > d.size-at {
		return corrupt("%d bytes at %d lie outside of the image of %d bytes", len(p), at, d.size)
	}
	for len(d.replayed) > 0 && len(p) > 0 {
		n := min(int64(len(p)), d.blockSize-at%d.blockSize)
		if err := d.readReplayed(p[:n], at); err != nil {
			return err
		}
		p, at = p[n:], at+n
	}
	return d.readRaw(p, at)
}

// readReplayed reads within one block.
func (d device) readReplayed(p []byte, at int64) error {
	block, ok := d.replayed[uint64(at/d.blockSize)] // not negative
	if !ok {
		return d.readRaw(p, at)
	}
	within := at % d.blockSize
	if err := d.readRaw(p, int64(block.at)*d.blockSize+within); err != nil { // checked when it was found
		return err
	}
	if block.escaped {
		var magic [4]byte
		binary.BigEndian.PutUint32(magic[:], journalMagic)
		if within < int64(len(magic)) {
			copy(p, magic[within:])
		}
	}
	return nil
}

func (d device) readRaw(p []byte, at int64) error {
	n, err := d.r.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return corrupt("the image ends at %d, its size should be %d", at+int64(n), d.size)
	}
	return err
}

// readBlock returns the content of a block.
func (f *FS) readBlock(block uint64) ([]byte, error) {
	if err := f.checkBlocks(block, 1); err != nil {
		return nil, err
	}
	p := make([]byte, f.super.blockSize)
	return p, f.dev.read(p, int64(block)*f.super.blockSize) // checked
}

// checkBlocks refuses blocks that the filesystem doesn't have. No file has its content in block 0.
func (f *FS) checkBlocks(block, count uint64) error {
	if block == 0 || block >= f.super.blocks || count > f.super.blocks-block {
		return corrupt("%d blocks at %d lie outside of the filesystem of %d blocks", count, block, f.super.blocks)
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return fault.New(fault.Corrupt, "damaged ext4 filesystem: "+format, args...)
}

func le16(p []byte) uint16 { return binary.LittleEndian.Uint16(p) }
func le32(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }
