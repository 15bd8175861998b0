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

// PutOptions says who owns what Put unpacks. The zero value: root.
type PutOptions struct {
	KeepOwner bool // take user and group ids from the archive
	UID, GID  int  // else these
	Keep      bool // leave files alone that are there already
}

// Put unpacks a tar stream in a directory of the guest, which is made if it is missing. Existing files are replaced,
// directories stay. Nothing is written outside of dir, whatever the archive and dir's symbolic links say. It returns when
// all is in place, or as soon as the guest gives up: a Read of the archive may still be under way then.
func (c *Client) Put(ctx context.Context, dir string, archive io.Reader, opts PutOptions) error {
	return c.put(ctx, archive, guestproto.PutSpec{
		Dir: dir, KeepOwner: opts.KeepOwner, UID: opts.UID, GID: opts.GID, Keep: opts.Keep,
	})
}

// PutHome is Put into the home directory that the guest has on its work disk.
func (c *Client) PutHome(ctx context.Context, archive io.Reader, opts PutOptions) error {
	return c.put(ctx, archive, guestproto.PutSpec{
		Home: true, KeepOwner: opts.KeepOwner, UID: opts.UID, GID: opts.GID, Keep: opts.Keep,
	})
}

func (c *Client) put(ctx context.Context, archive io.Reader, spec guestproto.PutSpec) error {
	k, err := c.call(ctx, guestproto.OpPut, spec)
	if err != nil {
		return err
	}
	defer k.close()
	reply, sent := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := k.expect(guestproto.FrameDone)
		reply <- err
	}()
	go func() { sent <- k.sendAll(archive) }()
	select {
	case err := <-reply:
		return err
	case err := <-sent:
		if _, local := err.(*sourceError); local { //nolint:errorlint // made by sendAll, never wrapped
			return fault.New(fault.KindOf(err), "read the archive: %w", err)
		}
	}
	return <-reply // if the link failed, or the guest, the reply says so
}

// sourceError is an error of the reader whose bytes are sent, not of the link.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

func (k *call) sendAll(r io.Reader) error {
	buf := make([]byte, guestproto.MaxData)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := k.w.Data(guestproto.FrameData, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return k.w.Frame(guestproto.FrameEOF, nil)
		}
		if err != nil {
			return &sourceError{err}
		}
	}
}

// Get packs a file or directory of the guest and writes the tar stream to w. Entry names begin with the last element of
// path. The bytes are the guest's: whoever unpacks them handles a hostile archive, of any length.
func (c *Client) Get(ctx context.Context, path string, w io.Writer) error {
	k, err := c.call(ctx, guestproto.OpGet, guestproto.GetSpec{Path: path})
	if err != nil {
		return err
	}
	defer k.close()
	for {
		f, err := k.next()
		switch {
		case err != nil:
			return err
		case f.Type == guestproto.FrameDone:
			return nil
		case f.Type != guestproto.FrameData:
			return k.unexpected(f)
		}
		if _, err := w.Write(f.Payload); err != nil {
			return fault.New(fault.KindOf(err), "write the archive: %w", err)
		}
	}
}

// Dial connects to an address from inside the guest: network is tcp, tcp4, tcp6 or unix. The context bounds the connecting
// only. The connection has CloseWrite. If the guest's peer takes nothing, Write waits.
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
	return &dialConn{call: k}, nil
}

// dialConn is a connection made in the guest: FrameData and FrameEOF each way.
type dialConn struct {
	call    *call
	reading sync.Mutex
	rest    []byte
	err     error // of reading, for good
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
		case err != nil:
			d.err = err
		case f.Type == guestproto.FrameEOF:
			d.err = io.EOF
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

func (d *dialConn) Write(b []byte) (int, error) { return d.call.w.Data(guestproto.FrameData, b) }

// CloseWrite ends the direction to the guest.
func (d *dialConn) CloseWrite() error { return d.call.w.Frame(guestproto.FrameEOF, nil) }

func (d *dialConn) Close() error { return d.call.conn.Close() }

func (d *dialConn) LocalAddr() net.Addr  { return d.call.conn.LocalAddr() }
func (d *dialConn) RemoteAddr() net.Addr { return d.call.conn.RemoteAddr() }

func (d *dialConn) SetDeadline(t time.Time) error      { return d.call.conn.SetDeadline(t) }
func (d *dialConn) SetReadDeadline(t time.Time) error  { return d.call.conn.SetReadDeadline(t) }
func (d *dialConn) SetWriteDeadline(t time.Time) error { return d.call.conn.SetWriteDeadline(t) }
