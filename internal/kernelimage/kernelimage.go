// Package kernelimage reads Linux kernels for x86-64: bzImage files and the ELF files (vmlinux) inside of them or on
// their own. It says what a file is, unpacks the one from the other, and finds release, build configuration and the PVH
// entry in them.
//
// What it reads is foreign: sizes are bounded by MaxSize, and nothing in a file makes it panic, loop or take more
// memory than that. It owns no files and keeps no state.
package kernelimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"banger/internal/fault"
)

// MaxSize bounds a kernel that is unpacked, in bytes. A distribution's has 30 to 80 MB.
const MaxSize = 256 << 20

// Kind is what a file is.
type Kind string

// The kinds.
const (
	BzImage Kind = "bzImage" // compressed, with code that unpacks it: Documentation/arch/x86/boot.rst
	ELF     Kind = "vmlinux" // unpacked
)

// Offsets in a bzImage's header, protocol 2.08 and later.
const (
	offSetupSects    = 0x1f1 // sectors of the real-mode code, less one
	offMagic         = 0x202
	offProtocol      = 0x206
	offVersion       = 0x20e // pointer to the version's text, less 0x200
	offPayload       = 0x248 // from the protected-mode code
	offPayloadLength = 0x24c
	headerEnd        = 0x250
)

// Identify says what the file is; fault.Invalid if it is no kernel for this kind of machine.
func Identify(r io.ReaderAt) (Kind, error) {
	head := make([]byte, headerEnd)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read kernel: %w", err)
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		if n < 20 || head[elf.EI_CLASS] != byte(elf.ELFCLASS64) || head[elf.EI_DATA] != byte(elf.ELFDATA2LSB) {
			return "", fault.New(fault.Invalid, "it is an ELF file, but not of a 64-bit little-endian machine")
		}
		if m := elf.Machine(binary.LittleEndian.Uint16(head[18:])); m != elf.EM_X86_64 {
			return "", fault.New(fault.Unsupported, "it is for another processor (%s); banger runs x86-64 kernels here", m)
		}
		if t := elf.Type(binary.LittleEndian.Uint16(head[16:])); t != elf.ET_EXEC && t != elf.ET_DYN {
			return "", fault.New(fault.Invalid, "it is an ELF file, but not a kernel (%s)", t)
		}
		return ELF, nil
	case isBzImage(head):
		return BzImage, nil
	case len(head) > 0x40 && string(head[0x38:0x3c]) == "ARMd": // Documentation/arch/arm64/booting.rst
		return "", fault.New(fault.Unsupported, "it is for another processor (arm64); banger runs x86-64 kernels here")
	default:
		return "", fault.New(fault.Invalid, "it is neither a bzImage nor a vmlinux")
	}
}

func isBzImage(head []byte) bool {
	return len(head) >= headerEnd && string(head[offMagic:offMagic+4]) == "HdrS" &&
		binary.LittleEndian.Uint16(head[offProtocol:]) >= 0x208
}

// Unpack returns the ELF file that a bzImage unpacks when it boots. Methods that are not known, and damage, are errors.
func Unpack(image []byte) ([]byte, error) {
	packed, err := payload(image)
	if err != nil {
		return nil, err
	}
	kernel, err := decompress(packed)
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	if !bytes.HasPrefix(kernel, []byte(elf.ELFMAG)) {
		return nil, errors.New("its payload is not an ELF file")
	}
	return kernel, nil
}

// payload returns the packed kernel in a bzImage: at least 8 bytes.
func payload(image []byte) ([]byte, error) {
	if !isBzImage(image) {
		return nil, errors.New("not a bzImage")
	}
	le := binary.LittleEndian
	sects := int64(image[offSetupSects])
	if sects == 0 {
		sects = 4
	}
	begin := (sects+1)*512 + int64(le.Uint32(image[offPayload:]))
	end := begin + int64(le.Uint32(image[offPayloadLength:]))
	if end > int64(len(image)) || end-begin < 8 {
		return nil, errors.New("its payload lies outside of it")
	}
	return image[begin:end], nil
}

// Release returns what uname -r will say, or "" if the file doesn't tell.
func Release(kind Kind, r io.ReaderAt, size int64) string {
	var text []byte
	if kind == BzImage {
		var pointer [2]byte
		if _, err := r.ReadAt(pointer[:], offVersion); err != nil || pointer == [2]byte{} {
			return ""
		}
		text = make([]byte, maxRelease+1)
		n, _ := r.ReadAt(text, int64(binary.LittleEndian.Uint16(pointer[:]))+0x200)
		text = text[:n]
	} else {
		// linux_banner, init/version.c. The format string of /proc/version begins alike, hence the digit.
		const banner = "Linux version "
		for from := int64(0); ; {
			at := find(r, size, from, []byte(banner))
			if at < 0 {
				return ""
			}
			text = make([]byte, maxRelease+1)
			n, _ := r.ReadAt(text, at+int64(len(banner)))
			if text = text[:n]; n > 0 && text[0] >= '0' && text[0] <= '9' {
				break
			}
			from = at + 1
		}
	}
	word, _, ok := bytes.Cut(text, []byte(" "))
	if !ok || !ValidRelease(string(word)) {
		return ""
	}
	return string(word)
}

// maxRelease is the longest release: utsname(5) has 65 bytes for it.
const maxRelease = 64

// ValidRelease reports whether a text can be a kernel's release, and so a directory's name.
func ValidRelease(s string) bool {
	return len(s) > 0 && len(s) <= maxRelease && s[0] >= '0' && s[0] <= '9' && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(".-+_~", c)
	})
}

// find returns where a text is in a file, from an offset on; -1 if nowhere.
func find(r io.ReaderAt, size, from int64, text []byte) int64 {
	const step = 1 << 20
	size = min(size, 4*MaxSize) // with debugging information they are larger, but what is looked for comes early
	buf := make([]byte, step+len(text))
	for at := from; at < size; at += step {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if i := bytes.Index(buf[:n], text); i >= 0 {
			return at + int64(i)
		}
		if err != nil {
			return -1
		}
	}
	return -1
}
