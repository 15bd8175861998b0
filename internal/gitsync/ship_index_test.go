package gitsync

import (
	"crypto/sha1" //nolint:gosec // the hash of git's indexes
	"encoding/binary"
	"testing"
)

func FuzzIndexWithoutExtensions(f *testing.F) {
	entry := append(make([]byte, 40+20+2), "name\x00\x00\x00\x00\x00\x00"...)
	whole := append([]byte("DIRC\x00\x00\x00\x02\x00\x00\x00\x01"), entry...)
	f.Add(append(whole, "TREE\x00\x00\x00\x00"...))
	f.Add(whole[:30])
	f.Add([]byte("DIRC\x00\x00\x00\x03\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, index []byte) {
		out, err := withoutExtensions(index, sha1.New())
		if err != nil {
			return
		}
		again, err := withoutExtensions(out, sha1.New())
		if err != nil || string(again) != string(out) || len(out) > len(index)+sha1.Size {
			t.Errorf("%d bytes became %d, then %d: %v", len(index), len(out), len(again), err)
		}
		if binary.BigEndian.Uint32(out[8:]) != binary.BigEndian.Uint32(index[8:]) {
			t.Error("the number of entries has changed")
		}
	})
}
