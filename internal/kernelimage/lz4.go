package kernelimage

import (
	"encoding/binary"
	"errors"
)

// lz4Magic begins the "legacy frame" of LZ4 that Linux uses (lz4_Frame_format.md): blocks of 8 MiB of content, each after
// its packed size.
var lz4Magic = []byte{0x02, 0x21, 0x4c, 0x18} //nolint:gochecknoglobals // constant

const lz4Block = 8 << 20

var errLZ4 = errors.New("damaged LZ4 data")

// unpackLZ4 unpacks a legacy frame of exactly size bytes of content.
func unpackLZ4(data []byte, size int) ([]byte, error) {
	if size < 0 || size > MaxSize || size/255 > len(data) { // LZ4 makes at most 255 bytes from one
		return nil, errLZ4
	}
	out := make([]byte, 0, size)
	for data = data[len(lz4Magic):]; len(data) > 0; {
		if len(data) < 4 {
			return nil, errLZ4
		}
		n := binary.LittleEndian.Uint32(data)
		if data = data[4:]; uint64(n) > uint64(len(data)) {
			return nil, errLZ4
		}
		start := len(out)
		var err error
		if out, err = unpackLZ4Block(out, data[:n], min(size, start+lz4Block)); err != nil {
			return nil, err
		}
		data = data[n:]
	}
	if len(out) != size {
		return nil, errLZ4
	}
	return out, nil
}

// unpackLZ4Block appends a block's content (lz4_Block_format.md) to out, up to limit bytes in all. Matches reach back no
// further than the block's own beginning.
func unpackLZ4Block(out, in []byte, limit int) ([]byte, error) {
	start := len(out)
	for len(in) > 0 {
		token := in[0]
		literals, rest, ok := lz4Length(int(token>>4), in[1:])
		if !ok || literals > len(rest) || literals > limit-len(out) {
			return nil, errLZ4
		}
		out = append(out, rest[:literals]...)
		if in = rest[literals:]; len(in) == 0 {
			return out, nil // the last sequence has no match
		}
		if len(in) < 2 {
			return nil, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(in))
		match, rest, ok := lz4Length(int(token&15), in[2:])
		match += 4
		if !ok || offset == 0 || offset > len(out)-start || match > limit-len(out) {
			return nil, errLZ4
		}
		in = rest
		for match > 0 { // a match may overlap what it makes
			n := min(match, offset)
			from := len(out) - offset
			out = append(out, out[from:from+n]...)
			match -= n
		}
	}
	return nil, errLZ4
}

// lz4Length completes a length of a token's four bits.
func lz4Length(n int, in []byte) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		if n += int(b); b != 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}
