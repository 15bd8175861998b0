package kernelimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/ulikunitz/xz/lzma"
)

// maxDict bounds the dictionary of LZMA data, in bytes: kernels use 32 MiB (scripts/xz_wrap.sh).
const maxDict = 64 << 20

var errXZ = errors.New("damaged XZ data")

// Filters of a block (xz-file-format.txt, 5.3).
const (
	filterX86   = 0x04
	filterLZMA2 = 0x21
)

// unpackXZ unpacks the XZ stream of a kernel: one block, filtered as x86 code, which is why a reader for files does not
// do. Of the checks only the size is looked at.
func unpackXZ(data []byte, size uint32) ([]byte, error) {
	const streamHeader = 12
	if len(data) < streamHeader+8 {
		return nil, errXZ
	}
	block := data[streamHeader:]
	headerSize := (int(block[0]) + 1) * 4
	if block[0] == 0 || headerSize > len(block) {
		return nil, errXZ
	}
	dict, x86, err := parseBlockHeader(block[1 : headerSize-4])
	if err != nil {
		return nil, err
	}
	lz, err := lzma.Reader2Config{DictCap: dict}.NewReader2(bytes.NewReader(block[headerSize:]))
	if err != nil {
		return nil, err
	}
	out, err := readAll(lz, size)
	if err != nil {
		return nil, err
	}
	if x86 {
		unfilterX86(out)
	}
	return out, nil
}

// parseBlockHeader returns the size of the dictionary and whether there is a filter for x86 code.
func parseBlockHeader(h []byte) (dict int, x86 bool, err error) {
	if len(h) == 0 {
		return 0, false, errXZ
	}
	flags := h[0]
	h = h[1:]
	number := func() uint64 {
		v, n := binary.Uvarint(h)
		if n <= 0 {
			err, h = errXZ, nil
			return 0
		}
		h = h[n:]
		return v
	}
	for _, sized := range []byte{0x40, 0x80} { // packed and unpacked size
		if flags&sized != 0 {
			number()
		}
	}
	for range flags&3 + 1 {
		id, length := number(), number()
		if err != nil || length > uint64(len(h)) {
			return 0, false, errXZ
		}
		properties := h[:length]
		h = h[length:]
		switch {
		case id == filterX86 && length == 0:
			x86 = true
		case id == filterLZMA2 && length == 1 && properties[0] <= 40:
			// 5.3.1: the dictionary's size is 2 or 3 times a power of two.
			size := uint64(2|properties[0]&1) << (properties[0]/2 + 11)
			if size > maxDict {
				return 0, false, errSize
			}
			dict = int(size) // bounded
		default:
			return 0, false, errors.New("XZ data with an unknown filter")
		}
	}
	if dict == 0 || bits.OnesCount8(flags&0x3c) != 0 {
		return 0, false, errXZ
	}
	return dict, x86, nil
}

// unfilterX86 makes the targets of calls and jumps relative again, which the filter had made absolute so that they
// compress better (XZ Embedded, linux/lib/xz/xz_dec_bcj.c).
func unfilterX86(buf []byte) {
	allowed := [8]bool{true, true, true, false, true}
	bitNumber := [8]uint32{0, 1, 2, 2, 3, 3, 3, 3}
	edge := func(b byte) bool { return b == 0 || b == 0xff }
	last, mask := -1, uint32(0) // the previous opcode
	for i := 0; i+4 < len(buf); i++ {
		if buf[i]&0xfe != 0xe8 {
			continue
		}
		if gap := i - last; gap > 3 {
			mask = 0
		} else if mask = mask << (gap - 1) & 7; mask != 0 {
			if !allowed[mask] || edge(buf[i+4-int(bitNumber[mask])]) {
				last, mask = i, mask<<1|1
				continue
			}
		}
		last = i
		if !edge(buf[i+4]) {
			mask = mask<<1 | 1
			continue
		}
		src := binary.LittleEndian.Uint32(buf[i+1:])
		var dest uint32
		for {
			dest = src - uint32(i+5) // positions fit
			if mask == 0 {
				break
			}
			shift := bitNumber[mask] * 8
			if !edge(byte(dest >> (24 - shift))) { // one byte of it
				break
			}
			src = dest ^ (1<<(32-shift) - 1)
		}
		dest &= 0x01ffffff
		dest |= -(dest & 0x01000000)
		binary.LittleEndian.PutUint32(buf[i+1:], dest)
		i += 4
	}
}
