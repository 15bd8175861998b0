package initramfs

import (
	"fmt"
	"io"
)

// File types of the mode field (stat(2)).
const (
	typeDir  = 0o040000
	typeFile = 0o100000

	typeChar = 0o020000
)

// maxEntry is the largest content of one file in bytes; the format has 32 bits for it.
const maxEntry = 1<<32 - 1

// archive writes a cpio archive of the "newc" kind, as the kernel reads it (Documentation/driver-api/early-userspace/
// buffer-format). The same calls make the same bytes: inode numbers count up, times are zero, the owner is root. After
// an error every call does nothing and returns it.
type archive struct {
	w   io.Writer
	ino uint32
	n   int64 // bytes written
	err error
}

type node struct {
	name         string // without a leading slash
	mode         uint32 // with its type
	major, minor uint32 // of a device
	size         int64
}

func (a *archive) dir(name string) error { return a.add(node{name: name, mode: typeDir | 0o755}, nil) }

func (a *archive) char(name string, perm, major, minor uint32) error {
	return a.add(node{name: name, mode: typeChar | perm, major: major, minor: minor}, nil)
}

func (a *archive) file(name string, perm uint32, content []byte) error {
	return a.add(node{name: name, mode: typeFile | perm, size: int64(len(content))}, content)
}

// stream adds a file of exactly size bytes.
func (a *archive) stream(name string, perm uint32, size int64, r io.Reader) error {
	a.header(node{name: name, mode: typeFile | perm, size: size})
	if a.err != nil {
		return a.err
	}
	n, err := io.CopyN(a.w, r, size)
	a.n += n
	if err != nil {
		a.err = fmt.Errorf("add %s: %w", name, err)
	}
	a.pad(4)
	return a.err
}

func (a *archive) add(n node, content []byte) error {
	a.header(n)
	a.write(content)
	a.pad(4)
	return a.err
}

func (a *archive) header(n node) {
	if n.size < 0 || n.size > maxEntry {
		a.err = fmt.Errorf("add %s: %d bytes are too much for a cpio archive", n.name, n.size)
		return
	}
	a.ino++
	links := 1
	if n.mode&typeDir != 0 && n.mode&typeFile == 0 {
		links = 2
	}
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, n.mode, 0, 0, links, 0, n.size, 0, 0, n.major, n.minor, len(n.name)+1, 0, n.name))
	a.pad(4)
}

// close writes the end marker and fills up to a whole sector.
func (a *archive) close() error {
	a.ino = 0
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(trailer)+1, 0, trailer))
	a.pad(512)
	return a.err
}

const trailer = "TRAILER!!!"

func (a *archive) pad(to int64) {
	if rest := a.n % to; rest != 0 {
		a.write(make([]byte, to-rest))
	}
}

func (a *archive) write(p []byte) {
	if a.err != nil || len(p) == 0 {
		return
	}
	n, err := a.w.Write(p)
	a.n += int64(n)
	a.err = err
}
