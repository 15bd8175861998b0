package guestlink

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// Dial connects to an address from inside the guest: network is tcp, tcp4, tcp6, udp or unix. The context bounds the
// connecting only. The connection has CloseWrite. If the guest's peer takes nothing, Write waits.
//
// A udp connection keeps datagrams apart: each Write sends one of at most guestproto.MaxData bytes, and each Read returns
// one, cut to the buffer's size.
func (c *Client) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	k, err := c.call(ctx, guestproto.OpDial, guestproto.DialSpec{Network: network, Addr: addr})
	if err != nil {
		return nil, err
	}
	if _, err := k.expect(guestproto.FrameDone); err != nil {
		k.close()
		return nil, err
	}
	if !k.stop() {
		k.close()
		return nil, k.fail(ctx.Err())
	}
	k.ctx = context.WithoutCancel(ctx)
	return &dialConn{call: k, datagrams: network == "udp"}, nil
}

// dialConn is a connection made in the guest: FrameData and FrameEOF each way.
type dialConn struct {
	call      *call
	datagrams bool // each FrameData is one
	reading   sync.Mutex
	rest      []byte
	err       error // of reading, for good
}

func (d *dialConn) Read(b []byte) (int, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	for len(d.rest) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		f, err := d.call.r.Next(guestproto.MaxPayload)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, err
		case errors.Is(err, io.EOF):
			d.err = io.ErrUnexpectedEOF // a direction that ends well ends with a frame that says so
		case err != nil:
			d.err = err
		case f.Type == guestproto.FrameEOF:
			d.err = io.EOF
		case f.Type == guestproto.FrameData && d.datagrams:
			return copy(b, f.Payload), nil
		case f.Type == guestproto.FrameData:
			d.rest = f.Payload
		case f.Type == guestproto.FrameError:
			d.err = io.ErrUnexpectedEOF
		default:
			d.err = d.call.unexpected(f)
		}
	}
	n := copy(b, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *dialConn) Write(b []byte) (int, error) {
	if !d.datagrams {
		return d.call.w.Data(guestproto.FrameData, b)
	}
	if len(b) > guestproto.MaxData {
		return 0, fault.New(fault.Invalid, "a datagram of %d bytes is too long: at most %d", len(b), guestproto.MaxData)
	}
	if err := d.call.w.Frame(guestproto.FrameData, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// CloseWrite ends the direction to the guest.
func (d *dialConn) CloseWrite() error { return d.call.w.Frame(guestproto.FrameEOF, nil) }

func (d *dialConn) Close() error { return d.call.conn.Close() }

func (d *dialConn) LocalAddr() net.Addr  { return d.call.conn.LocalAddr() }
func (d *dialConn) RemoteAddr() net.Addr { return d.call.conn.RemoteAddr() }

func (d *dialConn) SetDeadline(t time.Time) error      { return d.call.conn.SetDeadline(t) }
func (d *dialConn) SetReadDeadline(t time.Time) error  { return d.call.conn.SetReadDeadline(t) }
func (d *dialConn) SetWriteDeadline(t time.Time) error { return d.call.conn.SetWriteDeadline(t) }
