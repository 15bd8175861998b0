package packages

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	rpmMagic    = "\xed\xab\xee\xdb"
	headerMagic = "\x8e\xad\xe8\x01"
)

// Tags of a header and the type of their values (rpm, docs/manual/format_header.md).
const (
	tagName    = 1000
	tagVersion = 1001
	tagRelease = 1002
	typeString = 6
)

// openRPM reads an RPM package (rpm, docs/manual/format_v4.md): a lead of 96 bytes, a header with signatures, a header
// with the package's description, and a compressed cpio archive.
func (p *Package) openRPM(r *bufio.Reader) error {
	if _, err := r.Discard(96); err != nil {
		return err
	}
	_, size, err := readHeader(r)
	if err != nil {
		return fmt.Errorf("read signatures: %w", err)
	}
	if _, err := r.Discard(int(-size & 7)); err != nil { // filled up to eight bytes
		return err
	}
	tags, _, err := readHeader(r)
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	p.Name = tags[tagName]
	if p.Version = tags[tagVersion]; tags[tagRelease] != "" {
		p.Version += "-" + tags[tagRelease]
	}
	content, end, err := unpacked(r)
	if err != nil {
		return fmt.Errorf("unpack files: %w", err)
	}
	archive := &cpioReader{r: bufio.NewReaderSize(content, 1<<16)}
	p.close, p.next = end, archive.next
	return nil
}

// readHeader returns the strings that are wanted of a header, and its length in bytes.
func readHeader(r io.Reader) (map[uint32]string, int64, error) {
	be := binary.BigEndian
	var intro [16]byte
	if _, err := io.ReadFull(r, intro[:]); err != nil {
		return nil, 0, err
	}
	count, store := be.Uint32(intro[8:]), be.Uint32(intro[12:])
	// rpm's own limits (lib/header.c): 65,535 entries and 256 MiB; a kernel's header has 2 MB.
	if string(intro[:4]) != headerMagic || count > 1<<16 || store > 64<<20 {
		return nil, 0, errors.New("bad header")
	}
	index := make([]byte, 16*count)
	if _, err := io.ReadFull(r, index); err != nil {
		return nil, 0, err
	}
	tags, at := map[uint32]string{}, map[uint32]uint32{}
	for e := index; len(e) > 0; e = e[16:] {
		if tag := be.Uint32(e); tag >= tagName && tag <= tagRelease && be.Uint32(e[4:]) == typeString {
			at[tag] = be.Uint32(e[8:])
		}
	}
	// The texts that are wanted stand at the beginning, so the rest needs no memory.
	head := make([]byte, min(store, 64<<10))
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, 0, err
	}
	if _, err := io.CopyN(io.Discard, r, int64(store)-int64(len(head))); err != nil {
		return nil, 0, err
	}
	for tag, offset := range at {
		if offset < uint32(len(head)) { // 64 KiB
			if text, _, ok := strings.Cut(string(head[offset:]), "\x00"); ok {
				tags[tag] = printable(text)
			}
		}
	}
	return tags, 16 + int64(len(index)) + int64(store), nil
}
