package packages

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// cpioReader reads a cpio archive of the "newc" kind (cpio(5)), as RPM packages and initramfs files have it.
type cpioReader struct {
	r    *bufio.Reader
	left int64 // bytes of the current file, with the filling after it
	file io.LimitedReader
}

const cpioHeader = 110 // bytes

func (c *cpioReader) next() (Entry, io.Reader, error) {
	var none Entry
	if c.file.R != nil {
		c.left += c.file.N
		if _, err := io.CopyN(io.Discard, c.r, c.left); err != nil {
			return none, nil, fmt.Errorf("skip a file: %w", err)
		}
	}
	var h [cpioHeader]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return none, nil, fmt.Errorf("read the header of a file: %w", err)
	}
	if magic := string(h[:6]); magic != "070701" && magic != "070702" {
		return none, nil, fmt.Errorf("bad magic %.6q of a file", magic)
	}
	var bad error
	field := func(i int) int64 {
		v, err := strconv.ParseUint(string(h[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			bad = errors.New("bad header of a file")
		}
		return int64(v) // 32 bits
	}
	mode, links, size, nameSize := field(1), field(4), field(6), field(11)
	if bad != nil || nameSize < 1 || nameSize > maxName {
		return none, nil, errors.Join(bad, errors.New("bad length of a name"))
	}
	name := make([]byte, nameSize)
	if _, err := io.ReadFull(c.r, name); err != nil {
		return none, nil, fmt.Errorf("read a name: %w", err)
	}
	if _, err := c.r.Discard(int(-(cpioHeader + nameSize) & 3)); err != nil {
		return none, nil, fmt.Errorf("read a name: %w", err)
	}
	text := strings.TrimSuffix(string(name), "\x00")
	if text == "TRAILER!!!" {
		return none, nil, io.EOF
	}
	c.left, c.file = -size&3, io.LimitedReader{R: c.r, N: size}
	e := Entry{Name: text, Mode: unixMode(uint32(mode)), Size: size} // 32 bits
	if e.Mode.IsRegular() && links > 1 && size == 0 {
		e.Mode |= fs.ModeIrregular // the content is with the last of the links
	}
	return e, &c.file, nil
}

// unixMode translates a mode of stat(2).
func unixMode(m uint32) fs.FileMode {
	types := map[uint32]fs.FileMode{
		0o040000: fs.ModeDir, 0o100000: 0, 0o120000: fs.ModeSymlink, 0o020000: fs.ModeDevice | fs.ModeCharDevice,
		0o060000: fs.ModeDevice, 0o010000: fs.ModeNamedPipe, 0o140000: fs.ModeSocket,
	}
	kind, ok := types[m&0o170000]
	if !ok {
		kind = fs.ModeIrregular
	}
	return kind | fs.FileMode(m&0o777)
}
