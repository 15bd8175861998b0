package kernelimage

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestLZ4(t *testing.T) {
	t.Parallel()
	frame := func(block string) []byte {
		return append(binary.LittleEndian.AppendUint32(bytes.Clone(lz4Magic), uint32(len(block))), block...)
	}
	// "ab", then 4+2 bytes from 2 back, then the literal "!".
	got, err := unpackLZ4(frame("\x22ab\x02\x00\x10!"), 9)
	if err != nil || string(got) != "abababab!" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, bad := range map[string]string{
		"far match": "\x22ab\x03\x00\x10!", "zero offset": "\x22ab\x00\x00\x10!", "long literals": "\x92ab", "no end": "\x22ab\x02\x00",
		"long match": "\x2fab\x02\x00\xff\xff\x00\x10!", "cut length": "\xf0\xff", "cut offset": "\x22ab\x02",
	} {
		if got, err := unpackLZ4(frame(bad), 9); err == nil {
			t.Errorf("%s: accepted as %q", name, got)
		}
	}
}

func FuzzLZ4(f *testing.F) {
	f.Add([]byte("\x22ab\x02\x00\x10!"), 9)
	f.Fuzz(func(t *testing.T, block []byte, size int) {
		if size < 0 || size > 1<<20 {
			return
		}
		if out, err := unpackLZ4Block(nil, block, size); err == nil && len(out) > size {
			t.Errorf("%d bytes where %d were allowed", len(out), size)
		}
	})
}
