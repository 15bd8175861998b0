package rootfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// writeback is how many bytes are written before the kernel is told to begin with its own writing.
const writeback = 32 << 20

// sparseFile is a new file in which blocks of zeros beyond what was written so far become holes. It goes to the disk while
// it is written, so that there is little left to wait for in the end.
type sparseFile struct {
	f      *os.File
	pos    int64
	end    int64 // apparent size so far
	handed int64 // bytes below this position are on their way to the disk
	err    error // the first error of the file
}

// Write splits what it gets at block borders and leaves out blocks of zeros where nothing was written before.
func (s *sparseFile) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := s.run(p[done:])
		if chunk := p[done : done+n]; s.pos < s.end || !isZero(chunk) {
			if _, err := s.f.WriteAt(chunk, s.pos); err != nil {
				s.err = errors.Join(s.err, err)
				return done, err
			}
		}
		s.pos += int64(n)
		s.end = max(s.end, s.pos)
		done += n
	}
	if n := s.end - s.handed; n >= writeback {
		// Only a matter of speed: not every filesystem can.
		_ = unix.SyncFileRange(int(s.f.Fd()), s.handed, n, unix.SYNC_FILE_RANGE_WRITE)
		s.handed = s.end
	}
	return done, nil
}

// run returns how many bytes at the start of p can be treated alike: all holes, or all written.
func (s *sparseFile) run(p []byte) int {
	n := min(len(p), int(blockSize-s.pos%blockSize))
	if s.pos < s.end {
		return min(n, int(s.end-s.pos))
	}
	hole := isZero(p[:n])
	for n < len(p) {
		next := min(len(p)-n, blockSize)
		if isZero(p[n:n+next]) != hole {
			break
		}
		n += next
	}
	return n
}

var zeros [blockSize]byte //nolint:gochecknoglobals // constant

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// Read reads at the current position.
func (s *sparseFile) Read(p []byte) (int, error) {
	n, err := s.f.ReadAt(p, s.pos)
	s.pos += int64(n)
	return n, err
}

// Seek sets the position of the next Read or Write.
func (s *sparseFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.end
	default:
		return 0, errors.New("bad whence")
	}
	if offset < 0 {
		return 0, errors.New("negative position")
	}
	s.pos = offset
	return offset, nil
}

// finish gives the file its size: trailing holes are not there yet.
func (s *sparseFile) finish() error { return s.f.Truncate(s.end) }

// padInodeBitmaps sets the bits of each group's inode bitmap that stand for no inode, as the format wants it and e2fsck
// checks it: the filesystem writer leaves them clear. Fields are as in Documentation/filesystems/ext4 (super block and
// 32-byte group descriptors); the writer adds no checksums.
func padInodeBitmaps(f *os.File) error {
	const (
		superblock     = 1024 // position in bytes
		blocksCount    = 0x4
		blocksPerGroup = 0x20
		inodesPerGroup = 0x28
		descriptor     = 32 // bytes
		inodeBitmap    = 0x4
	)
	var sb [1024]byte
	if _, err := f.ReadAt(sb[:], superblock); err != nil {
		return err
	}
	le := binary.LittleEndian
	blocks, perGroup, inodes := le.Uint32(sb[blocksCount:]), le.Uint32(sb[blocksPerGroup:]), le.Uint32(sb[inodesPerGroup:])
	if perGroup == 0 || inodes > 8*blockSize || inodes%8 != 0 {
		return errors.New("unexpected layout of the new filesystem")
	}
	padding := bytes.Repeat([]byte{0xff}, blockSize-int(inodes/8))
	for group := range (blocks + perGroup - 1) / perGroup {
		var gd [descriptor]byte
		if _, err := f.ReadAt(gd[:], blockSize+int64(group)*descriptor); err != nil {
			return err
		}
		at := int64(le.Uint32(gd[inodeBitmap:]))*blockSize + int64(inodes/8)
		if _, err := f.WriteAt(padding, at); err != nil {
			return err
		}
	}
	return nil
}
