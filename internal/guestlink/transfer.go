package guestlink

import (
	"context"
	"errors"
	"io"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// PutOptions says who owns what Put unpacks. The zero value: root.
type PutOptions struct {
	KeepOwner bool   // take user and group ids from the archive
	UID, GID  int    // else these
	Keep      bool   // leave files alone that are there already
	User      string // with PutCopy: who owns it instead, as in guestproto.ExecSpec
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

// PutCopy is Put to a destination as a user writes it: relative to the home of opts.User, who owns what arrives unless
// opts.KeepOwner says otherwise. UID and GID are left aside.
func (c *Client) PutCopy(ctx context.Context, dest string, how guestproto.Copy, archive io.Reader, opts PutOptions) error {
	return c.put(ctx, archive, guestproto.PutSpec{Dir: dest, Copy: how, User: opts.User, KeepOwner: opts.KeepOwner, Keep: opts.Keep})
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
		n, err := fill(r, buf)
		if n > 0 {
			if _, err := k.w.Data(guestproto.FrameData, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return k.w.Frame(guestproto.FrameEOF, nil)
		}
		if err != nil {
			return &sourceError{err}
		}
	}
}

// fill reads until the buffer is full, because a frame costs the same however much it carries, or until an error.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

// Get packs a file or directory of the guest and writes the tar stream to w. Entry names begin with the last element of
// path. The bytes are the guest's: whoever unpacks them handles a hostile archive, of any length.
func (c *Client) Get(ctx context.Context, path string, w io.Writer) error {
	return c.GetCopy(ctx, guestproto.GetSpec{Path: path}, w)
}

// GetCopy is Get with all that can be said about it.
func (c *Client) GetCopy(ctx context.Context, spec guestproto.GetSpec, w io.Writer) error {
	k, err := c.call(ctx, guestproto.OpGet, spec)
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
