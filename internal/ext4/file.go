package ext4

import (
	"io"
	"math"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Open returns the content of a regular file, from its begin to its size. What was never written reads as zeros.
func (f *FS) Open(in *Inode) (io.Reader, error) {
	if in.Type() != unix.S_IFREG {
		return nil, fault.New(fault.Invalid, "inode %d is not a regular file", in.Number)
	}
	return f.content(in)
}

// content returns what a regular file, directory, long symbolic link or the like consists of.
func (f *FS) content(in *Inode) (io.Reader, error) {
	if in.flags&flagInline != 0 {
		return f.inline(in)
	}
	return &reader{mapping: mapping{fs: f, in: in}, size: in.Size}, nil
}

// reader reads the content of a file.
type reader struct {
	mapping

	size int64
	pos  int64
	run  run   // that the position lies in
	end  int64 // where the run ends
}

// Read implements [io.Reader].
func (r *reader) Read(p []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	blockSize := r.fs.super.blockSize
	if r.pos >= r.end {
		found, err := r.find(uint64(r.pos / blockSize)) // not negative
		if err != nil {
			return 0, err
		}
		r.run = found
		r.end = math.MaxInt64
		if blocks := uint64(r.pos/blockSize) + found.count; blocks < uint64(math.MaxInt64/blockSize) { // not negative
			r.end = int64(blocks) * blockSize // checked
		}
	}
	p = p[:min(int64(len(p)), min(r.size, r.end)-r.pos)]
	if r.run.block == 0 {
		clear(p)
	} else {
		// From the end: where the run began is not kept.
		at := int64(r.run.block+r.run.count)*blockSize - (r.end - r.pos) // checked by find
		if err := r.fs.dev.read(p, at); err != nil {
			return 0, err
		}
	}
	r.pos += int64(len(p))
	return len(p), nil
}

// Hole returns how many zeros follow that lie in no block, so that a caller need not read them; 0: none, or nothing at all.
func (r *reader) hole() int64 {
	if r.run.block != 0 || r.pos >= r.end {
		return 0
	}
	return min(r.size, r.end) - r.pos
}

// maxLink is the longest target of a symbolic link in bytes (PATH_MAX).
const maxLink = 4096

// Readlink returns the target of a symbolic link.
func (f *FS) Readlink(in *Inode) (string, error) {
	switch {
	case in.Type() != unix.S_IFLNK:
		return "", fault.New(fault.Invalid, "inode %d is not a symbolic link", in.Number)
	case in.Size == 0 || in.Size > maxLink:
		return "", corrupt("symbolic link %d has a target of %d bytes", in.Number, in.Size)
	case in.flags&(flagInline|flagExtents) == 0 && in.Size < int64(len(in.block)): // a fast one
		return string(in.block[:in.Size]), nil
	}
	r, err := f.content(in)
	if err != nil {
		return "", err
	}
	target := make([]byte, in.Size)
	if _, err := io.ReadFull(r, target); err != nil {
		return "", err
	}
	return string(target), nil
}
