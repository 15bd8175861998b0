package kernelimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"strings"
)

// maxNotes bounds what is read of an ELF file's notes, in bytes.
const maxNotes = 1 << 20

// HasPVH reports whether an ELF kernel can be entered by the PVH protocol, as QEMU and Firecracker do with an unpacked
// kernel: it has the note XEN_ELFNOTE_PHYS32_ENTRY (include/xen/interface/elfnote.h), which CONFIG_PVH makes.
func HasPVH(r io.ReaderAt) bool {
	f, err := elf.NewFile(r)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // it closes nothing
	left := uint64(maxNotes)
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > left {
			continue
		}
		left -= p.Filesz
		notes, err := io.ReadAll(io.LimitReader(p.Open(), maxNotes))
		if err == nil && hasNote(notes, "Xen", 18) {
			return true
		}
	}
	return false
}

// hasNote looks for a note by owner and type. Each has three words (length of name, length of content, type), then name
// and content, each filled up to four bytes (elf(5)).
func hasNote(notes []byte, owner string, kind uint32) bool {
	le := binary.LittleEndian
	for len(notes) >= 12 {
		name, desc, typ := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		notes = notes[12:]
		nameEnd := (name + 3) &^ 3
		end := nameEnd + (desc+3)&^3
		if nameEnd > uint64(len(notes)) || nameEnd+desc > uint64(len(notes)) {
			return false
		}
		if typ == kind && strings.TrimRight(string(notes[:name]), "\x00") == owner {
			return true
		}
		notes = notes[min(end, uint64(len(notes))):]
	}
	return false
}

// maxConfig bounds a build configuration, in bytes; a distribution's has 250 KB.
const maxConfig = 4 << 20

// EmbeddedConfig returns the build configuration that an ELF kernel made with CONFIG_IKCONFIG carries (kernel/configs.c);
// nil if there is none.
func EmbeddedConfig(r io.ReaderAt, size int64) []byte {
	for from := int64(0); ; {
		at := find(r, size, from, []byte("IKCFG_ST\x1f\x8b"))
		if at < 0 {
			return nil
		}
		z, err := gzip.NewReader(io.NewSectionReader(r, at+8, maxConfig))
		if err == nil {
			z.Multistream(false)
			text, err := io.ReadAll(io.LimitReader(z, maxConfig))
			if err == nil && bytes.Contains(text, []byte("CONFIG_")) {
				return text
			}
		}
		from = at + 1
	}
}
