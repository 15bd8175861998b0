package ext4

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// The journal is that of the kernel's jbd2 (Documentation/filesystems/ext4/journal.rst). Its numbers are big-endian.
const (
	journalMagic = 0xC03B3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuperV2    = 4
	journalRevoke     = 5

	journal64Bit      = 0x2
	journalChecksumV2 = 0x8
	journalChecksumV3 = 0x10
	journalKnown      = 0x1 | journal64Bit | 0x4 | journalChecksumV2 | journalChecksumV3 // revoke, async_commit

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	maxJournal = 1 << 20 // blocks; mkfs.ext4 makes at most 2^18 of 4 KiB
	maxRevoked = 4 << 20 // entries
)

// journal is a journal that is being read.
type journal struct {
	fs       *FS
	file     mapping
	features uint32
	seed     uint32 // of checksums
	first    uint32 // block of the log's first place
	end      uint32 // behind its last
	start    uint32 // where the oldest transaction begins; 0: nothing to replay
	sequence uint32 // of the oldest transaction
}

// transaction is what has been read of one.
type transaction struct {
	sequence uint32
	blocks   map[uint64]journalBlock
	revoked  []uint64
	damaged  bool // a block's checksum is wrong: it must not have been committed
}

// replay finds the blocks that committed transactions have written to the journal, and lays them over the image. A
// transaction without its end never happened.
func (f *FS) replay() error {
	f.dev.blockSize = f.super.blockSize
	j, err := f.openJournal()
	if err != nil {
		return err
	}
	replayed := map[uint64]journalBlock{}
	written := map[uint64]uint32{} // by block: in which transaction
	revoked := map[uint64]uint32{}
	err = j.scan(func(t transaction) error {
		for block, b := range t.blocks {
			replayed[block], written[block] = b, t.sequence
		}
		for _, block := range t.revoked {
			revoked[block] = t.sequence
		}
		if len(revoked) > maxRevoked {
			return corrupt("the journal revokes more than %d blocks", maxRevoked)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for block, sequence := range revoked {
		// Sequence numbers may wrap.
		if at, ok := written[block]; ok && int32(sequence-at) >= 0 { // meant to be signed
			delete(replayed, block)
		}
	}
	f.dev.replayed = replayed
	return nil
}

func (f *FS) openJournal() (*journal, error) {
	if f.super.journal == 0 {
		return nil, fault.New(fault.Unsupported, "the ext4 filesystem has to be recovered from a journal on another device")
	}
	in, err := f.Inode(f.super.journal)
	if err != nil {
		return nil, err
	}
	if in.Type() != unix.S_IFREG || in.flags&flagInline != 0 {
		return nil, corrupt("the journal is not a regular file")
	}
	j := &journal{fs: f, file: mapping{fs: f, in: in}}
	_, p, err := j.block(0)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if be.Uint32(p) != journalMagic || be.Uint32(p[4:]) != journalSuperV2 {
		return nil, corrupt("the journal has no superblock")
	}
	j.features = be.Uint32(p[0x28:])
	j.end, j.first, j.sequence, j.start = be.Uint32(p[0x10:]), be.Uint32(p[0x14:]), be.Uint32(p[0x18:]), be.Uint32(p[0x1C:])
	if unknown := j.features &^ journalKnown; unknown != 0 {
		return nil, fault.New(fault.Unsupported, "the ext4 filesystem's journal has unknown features: %#x", unknown).
			WithHint("start the VM and stop it, so that its kernel recovers the filesystem")
	}
	j.seed = crc32c(^uint32(0), p[0x30:0x40])
	if int64(be.Uint32(p[0xC:])) != f.super.blockSize || j.end > maxJournal || int64(j.end) > in.Size/f.super.blockSize ||
		j.first == 0 || j.first >= j.end || j.start != 0 && (j.start < j.first || j.start >= j.end) {
		return nil, corrupt("the journal's superblock makes no sense")
	}
	return j, nil
}

// block reads a block of the journal and says where in the image it lies.
func (j *journal) block(logical uint32) (at uint64, p []byte, err error) {
	r, err := j.file.find(uint64(logical))
	if err != nil {
		return 0, nil, err
	}
	if r.block == 0 {
		return 0, nil, corrupt("the journal has a hole")
	}
	p, err = j.fs.readBlock(r.block)
	return r.block, p, err
}

// place is where a reader of the log is.
type place struct {
	block uint32
	left  uint32 // blocks until it has been all round
}

// advance goes to the next block, and reports false once all have been seen.
func (j *journal) advance(at *place) bool {
	if at.block++; at.block >= j.end {
		at.block = j.first
	}
	at.left--
	return at.left > 0
}

// scan reads the log from its start and passes on every transaction that was committed. It ends where the log does: at a
// block that is not the expected one.
func (j *journal) scan(committed func(transaction) error) error {
	if j.start == 0 || j.end <= j.first {
		return nil
	}
	at := place{block: j.start, left: j.end - j.first}
	t := transaction{sequence: j.sequence, blocks: map[uint64]journalBlock{}}
	for more := true; more; {
		_, p, err := j.block(at.block)
		if err != nil {
			return err
		}
		be := binary.BigEndian
		kind := be.Uint32(p[4:])
		if be.Uint32(p) != journalMagic || be.Uint32(p[8:]) != t.sequence || !j.genuine(kind, p) {
			return nil
		}
		more = j.advance(&at)
		switch kind {
		case journalDescriptor:
			if !more {
				return nil
			}
			if more, err = j.describe(&t, p, &at); err != nil {
				return err
			}
		case journalRevoke:
			if err := j.revokes(&t, p); err != nil {
				return err
			}
		case journalCommit:
			if t.damaged {
				return corrupt("a transaction of the journal has a wrong checksum")
			}
			if err := committed(t); err != nil {
				return err
			}
			t = transaction{sequence: t.sequence + 1, blocks: map[uint64]journalBlock{}}
		}
	}
	return nil
}

// genuine reports whether a block of the log is of a kind that there is, and has the checksum that it must have.
func (j *journal) genuine(kind uint32, p []byte) bool {
	switch kind {
	case journalDescriptor, journalRevoke:
		return j.checkTail(p)
	case journalCommit:
		return j.checkCommit(p)
	default:
		return false
	}
}

// describe takes the blocks that follow a descriptor, and reports false if they end the log: such a transaction was never
// committed.
func (j *journal) describe(t *transaction, descriptor []byte, at *place) (more bool, err error) {
	tags, err := j.tags(descriptor)
	if err != nil {
		return false, err
	}
	for _, tag := range tags {
		if err := j.take(t, tag, at.block); err != nil {
			return false, err
		}
		if !j.advance(at) {
			return false, nil
		}
	}
	return true, nil
}

// tag says which block of the filesystem a block of the journal is for.
type tag struct {
	block    uint64
	flags    uint32
	checksum uint32
}

func (j *journal) checksummed() bool { return j.features&(journalChecksumV2|journalChecksumV3) != 0 }

// tags reads a descriptor block.
func (j *journal) tags(p []byte) ([]tag, error) {
	be := binary.BigEndian
	size := 8
	switch {
	case j.features&journalChecksumV3 != 0:
		size = 16
	case j.features&journalChecksumV2 != 0:
		size += 2
	}
	if j.features&journal64Bit != 0 && size < 16 {
		size += 4
	}
	end := len(p)
	if j.checksummed() {
		end -= 4
	}
	var tags []tag
	for at := 12; at+size <= end; {
		t := tag{block: uint64(be.Uint32(p[at:]))}
		if j.features&journalChecksumV3 != 0 {
			t.flags, t.checksum = be.Uint32(p[at+4:]), be.Uint32(p[at+12:])
		} else {
			t.checksum, t.flags = uint32(be.Uint16(p[at+4:])), uint32(be.Uint16(p[at+6:]))
		}
		if j.features&journal64Bit != 0 {
			t.block |= uint64(be.Uint32(p[at+8:])) << 32
		}
		if t.block >= j.fs.super.blocks {
			return nil, corrupt("the journal writes block %d of %d", t.block, j.fs.super.blocks)
		}
		tags = append(tags, t)
		if t.flags&tagLast != 0 {
			break
		}
		at += size
		if t.flags&tagSameUUID == 0 {
			at += 16
		}
	}
	return tags, nil
}

// take adds the block at a position of the journal to a transaction.
func (j *journal) take(t *transaction, to tag, pos uint32) error {
	at, p, err := j.block(pos)
	if err != nil {
		return err
	}
	if j.checksummed() {
		var sequence [4]byte
		binary.BigEndian.PutUint32(sequence[:], t.sequence)
		sum := crc32c(crc32c(j.seed, sequence[:]), p)
		if j.features&journalChecksumV3 == 0 {
			sum &= 0xFFFF
		}
		if sum != to.checksum {
			t.damaged = true // the machine may have died while it was written
		}
	}
	t.blocks[to.block] = journalBlock{at: at, escaped: to.flags&tagEscaped != 0}
	return nil
}

// revokes adds to a transaction what a revoke block lists: blocks whose earlier content in the journal is void.
func (j *journal) revokes(t *transaction, p []byte) error {
	be := binary.BigEndian
	size := 4
	if j.features&journal64Bit != 0 {
		size = 8
	}
	used := int(be.Uint32(p[12:]) & 0x7FFFFFFF)
	if used > len(p) {
		return corrupt("the journal revokes more than fits into a block")
	}
	for at := 16; at+size <= used; at += size {
		block := uint64(be.Uint32(p[at:]))
		if size == 8 {
			block = be.Uint64(p[at:])
		}
		t.revoked = append(t.revoked, block)
	}
	if len(t.revoked) > maxRevoked {
		return corrupt("the journal revokes more than %d blocks", maxRevoked)
	}
	return nil
}

// checkTail checks the checksum at the end of a descriptor or revoke block.
func (j *journal) checkTail(p []byte) bool { return j.checkAt(p, len(p)-4) }

// checkCommit checks the checksum of a commit block (h_chksum).
func (j *journal) checkCommit(p []byte) bool { return j.checkAt(p, 16) }

func (j *journal) checkAt(p []byte, at int) bool {
	if !j.checksummed() {
		return true
	}
	want := binary.BigEndian.Uint32(p[at:])
	sum := crc32c(j.seed, p[:at])
	sum = crc32c(sum, make([]byte, 4))
	return crc32c(sum, p[at+4:]) == want
}
