package guestproto

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// SessionID tells one session from all others that a guest, or a copy of it, ever had.
type SessionID [16]byte

// Preamble is what the host sends to open a session. The clock and the entropy come with it, so that a guest restored
// from a snapshot has both before it serves anything. A guest that boots reads it late: for the exact time there is
// OpConfigure.
type Preamble struct {
	ID      SessionID
	TimeNS  int64    // the host's wall clock, ns since 1970
	Entropy [32]byte // fresh, for the guest's random number generator
}

// magic begins a preamble and its answer. Its first byte occurs only once in it, and is neither the version of yamux (0)
// nor fill, so that neither can be taken for its start.
const magic = "\xb5BANGER\n"

// fill precedes a preamble: longer than any yamux frame, and no yamux header. A guest that waits for the rest of a frame
// of a dead session (it was restored from a snapshot) takes fill for that rest, finds no header after it, gives that
// session up and searches for a preamble. No byte of a living session can be mistaken for one.
const (
	fill     = 0xff
	fillSize = muxHeader + MaxMuxFrame + muxHeader
)

// Sizes on the wire, in bytes: magic, version, id, time, entropy, CRC-32 (IEEE) of all that.
const (
	preambleSize = len(magic) + 1 + 16 + 8 + 32 + 4
	answerPrefix = len(magic) + 1 + 16
)

// MaxStale is how many bytes of earlier sessions the host discards before it gives a guest up.
const MaxStale = 64 << 20

// Append encodes the preamble, with the fill before it.
func (p Preamble) Append(b []byte) []byte {
	b = append(b, bytes.Repeat([]byte{fill}, fillSize)...)
	start := len(b)
	b = append(b, magic...)
	b = append(b, Version)
	b = append(b, p.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.TimeNS)) // two's complement on both ends
	b = append(b, p.Entropy[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

// ReadPreamble discards bytes up to the next preamble. The reader's buffer must hold 128 bytes or more.
func ReadPreamble(r *bufio.Reader) (Preamble, error) {
	var p Preamble
	err := scan(r, preambleSize, 0, func(b []byte) bool {
		body, sum := b[:preambleSize-4], b[preambleSize-4:]
		if string(b[:len(magic)]) != magic || crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(sum) {
			return false
		}
		b = b[len(magic)+1:]
		copy(p.ID[:], b)
		p.TimeNS = int64(binary.BigEndian.Uint64(b[16:])) // two's complement on both ends
		copy(p.Entropy[:], b[24:])
		return true
	})
	return p, err
}

// AppendAnswer encodes the guest's answer to the preamble of a session.
func AppendAnswer(b []byte, id SessionID, h Hello) ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode hello: %w", err)
	}
	if len(body) > MaxHello {
		return nil, errors.New("encode hello: too long")
	}
	b = append(b, magic...)
	b = append(b, Version)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body))) // bounded above
	return append(b, body...), nil
}

// ReadAnswer discards bytes of earlier sessions up to the answer for this one. The answer is the guest's, and so hostile:
// it is bounded, and every field of it is checked.
func ReadAnswer(r *bufio.Reader, id SessionID) (Hello, error) {
	// The version is left out of the comparison: another version is told as such, by Hello.check.
	match := func(b []byte) bool {
		return string(b[:len(magic)]) == magic && SessionID(b[len(magic)+1:]) == id
	}
	if err := scan(r, answerPrefix, MaxStale, match); err != nil {
		return Hello{}, err
	}
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return Hello{}, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxHello {
		return Hello{}, fmt.Errorf("hello of %d bytes, at most %d", n, MaxHello)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return Hello{}, err
	}
	var h Hello
	if err := json.Unmarshal(body, &h); err != nil {
		return Hello{}, fmt.Errorf("decode hello: %w", err)
	}
	return h, h.check()
}

func (h Hello) check() error {
	switch {
	case h.Protocol != Version:
		return fmt.Errorf("the agent speaks protocol %d, not %d", h.Protocol, Version)
	case !printable(h.Agent, 64) || !printable(h.Kernel, 65) || !printable(h.Init, 16):
		return errors.New("hello with a malformed field")
	case !isUUID(h.BootID):
		return errors.New("hello with a malformed boot id")
	case h.UptimeNS < 0 || h.Pid < 1:
		return errors.New("hello with a negative number")
	}
	return nil
}

// printable reports whether s is one to limit bytes of printable ASCII.
func printable(s string, limit int) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= limit
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (s[i] == '-') || (!dash && !isHex(s[i])) {
			return false
		}
	}
	return true
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

// scan discards bytes until the next n of them, which begin like the magic, satisfy match, and consumes those. A limit
// other than 0 bounds how many bytes are discarded.
func scan(r *bufio.Reader, n, limit int, match func([]byte) bool) error {
	for discarded := 0; ; {
		b, err := r.Peek(n)
		if err != nil {
			return err
		}
		if b[0] == magic[0] && match(b) {
			_, err = r.Discard(n)
			return err
		}
		// What is buffered can be searched at once; at least one byte goes.
		b, _ = r.Peek(r.Buffered())
		skip := bytes.IndexByte(b[1:], magic[0]) + 1
		if skip == 0 {
			skip = len(b)
		}
		if discarded += skip; limit > 0 && discarded > limit {
			return fmt.Errorf("no answer within %d bytes", limit)
		}
		if _, err = r.Discard(skip); err != nil {
			return err
		}
	}
}
