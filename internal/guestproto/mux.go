package guestproto

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxMuxFrame is the largest payload of a yamux frame on the link, in bytes. Streams are written in pieces of this size
// at most. With its header a frame fills what Linux takes in one write to a virtio-serial port (port_fops_write).
const MaxMuxFrame = 32<<10 - muxHeader

// The header of a yamux frame: version, type, flags, stream id, length (yamux spec.md).
const (
	muxHeader       = 12
	muxData         = 0
	muxWindowUpdate = 1
	muxGoAway       = 3
	muxSYN          = 1
)

// ErrBadFrame is the error of bytes that are no frame of a session.
var ErrBadFrame = errors.New("not a frame of this session")

// Side is an end of the link.
type Side int

// The two ends.
const (
	HostSide  Side = iota // opens the streams
	GuestSide             // accepts them
)

// MuxConn is the byte stream as one yamux session sees it. It stands between the two because yamux trusts its peer:
//
//   - Read hands out whole frames only, so that yamux never waits for the rest of one with a stream's locks held, and
//     refuses those a peer has no business to send: pings (yamux answers each with a goroutine), streams opened by the
//     guest, frames longer than MaxMuxFrame. After an error of Read the bytes of the offending header are still unread.
//   - Write joins the header of a data frame with its payload, which yamux writes separately.
type MuxConn struct {
	r       *bufio.Reader
	w       io.Writer
	side    Side
	close   func() error
	frame   []byte // the frame being handed out
	rest    []byte // what is left of it
	pending []byte // a frame's header that waits for its payload
}

// NewMuxConn returns the connection of one session. close is called by Close; it must make Read and Write return.
func NewMuxConn(side Side, r *bufio.Reader, w io.Writer, closeFn func() error) *MuxConn {
	return &MuxConn{r: r, w: w, side: side, close: closeFn}
}

// Read reads from the current frame.
func (c *MuxConn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *MuxConn) next() error {
	hdr, err := c.r.Peek(muxHeader)
	if err != nil {
		return err
	}
	size, err := c.check(hdr)
	if err != nil {
		return err
	}
	if cap(c.frame) < muxHeader+size {
		c.frame = make([]byte, muxHeader+size)
	}
	c.frame = c.frame[:muxHeader+size]
	if _, err := io.ReadFull(c.r, c.frame); err != nil {
		return err
	}
	c.rest = c.frame
	return nil
}

// check returns the size of the payload that follows a header.
func (c *MuxConn) check(hdr []byte) (int, error) {
	typ, flags, length := hdr[1], binary.BigEndian.Uint16(hdr[2:]), binary.BigEndian.Uint32(hdr[8:])
	switch {
	case hdr[0] != 0:
		return 0, fmt.Errorf("%w: version %d", ErrBadFrame, hdr[0])
	case flags&muxSYN != 0 && c.side == HostSide:
		return 0, fmt.Errorf("%w: the guest opens a stream", ErrBadFrame)
	case typ == muxWindowUpdate || typ == muxGoAway:
		return 0, nil
	case typ != muxData:
		return 0, fmt.Errorf("%w: type %d", ErrBadFrame, typ)
	case length > MaxMuxFrame:
		return 0, fmt.Errorf("%w: %d bytes", ErrBadFrame, length)
	}
	return int(length), nil
}

// Write writes a header or a payload. yamux calls it from one goroutine.
func (c *MuxConn) Write(b []byte) (int, error) {
	if len(c.pending) == 0 && len(b) == muxHeader && b[1] == muxData && binary.BigEndian.Uint32(b[8:]) > 0 {
		c.pending = append(c.pending, b...)
		return len(b), nil
	}
	out := b
	if len(c.pending) > 0 {
		c.pending = append(c.pending, b...)
		out = c.pending
	}
	_, err := c.w.Write(out)
	c.pending = c.pending[:0]
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends the session's use of the byte stream.
func (c *MuxConn) Close() error { return c.close() }
