package guestlink

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"time"
	"unicode"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// Client makes requests of one guest's agent. Its methods may be called concurrently; the end of a context closes the
// stream of its call. Errors of the guest keep the kind that the guest gave them; an agent that can't be reached is
// fault.Unavailable.
type Client struct {
	opener Opener
}

// NewClient returns a client that opens its streams with o.
func NewClient(o Opener) *Client { return &Client{opener: o} }

// Ping makes sure that the agent answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.simple(ctx, guestproto.OpPing, nil)
}

// Sync writes the guest's dirty pages to its disks (sync(2)).
func (c *Client) Sync(ctx context.Context) error {
	return c.simple(ctx, guestproto.OpSync, nil)
}

// Main starts the main process of the guest, unless it has one. Errors are those of Start.
func (c *Client) Main(ctx context.Context, spec guestproto.MainSpec) error {
	return c.simple(ctx, guestproto.OpMain, spec)
}

// Shutdown asks the guest to go down and returns when it has begun to. The VMM's end says when it is done. patience is how
// long the host will wait for that: the guest gives three quarters of it to its main process, if it has one.
func (c *Client) Shutdown(ctx context.Context, how guestproto.Shutdown, patience time.Duration) error {
	spec := guestproto.ShutdownSpec{How: how, MainMS: max(1, int(patience*3/4/time.Millisecond))}
	if deadline, ok := ctx.Deadline(); ok {
		// Half of the time for the guest's processes to end by themselves, half for the rest.
		spec.GraceMS = max(1, int(time.Until(deadline)/2/time.Millisecond))
	}
	return c.simple(ctx, guestproto.OpShutdown, spec)
}

// Configure gives the guest its identity. It takes effect for every later command.
func (c *Client) Configure(ctx context.Context, id guestproto.Identity) error {
	return c.simple(ctx, guestproto.OpConfigure, id)
}

// Grow makes the file system on a disk fill the disk, which has size bytes by now, while it is in use. One that fills it
// already is no error.
func (c *Client) Grow(ctx context.Context, serial string, size int64) error {
	return c.simple(ctx, guestproto.OpGrow, guestproto.GrowSpec{Serial: serial, Size: size})
}

// call is a stream with a request on its way.
type call struct {
	ctx  context.Context //nolint:containedctx // the life of one request
	op   guestproto.Op
	conn net.Conn
	r    *guestproto.Reader
	w    *guestproto.Writer
	stop func() bool
}

func (c *Client) call(ctx context.Context, op guestproto.Op, args any) (*call, error) {
	req := guestproto.Request{Op: op}
	if args != nil {
		raw, err := json.Marshal(args)
		if err != nil {
			return nil, fault.New(fault.Internal, "encode the request %s: %w", op, err)
		}
		req.Args = raw
	}
	conn, err := c.opener.OpenStream(ctx)
	if err != nil {
		return nil, linkError(ctx, "reach the guest agent", err)
	}
	k := &call{ctx: ctx, op: op, conn: conn, r: guestproto.NewReader(conn), w: guestproto.NewWriter(conn)}
	k.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := k.w.JSON(guestproto.FrameRequest, req); err != nil {
		defer k.close()
		if errors.Is(err, guestproto.ErrTooLong) {
			return nil, fault.New(fault.Invalid, "the request %s is too long: at most %d bytes", op, guestproto.MaxRequest)
		}
		return nil, k.fail(err)
	}
	return k, nil
}

func (k *call) close() {
	k.stop()
	_ = k.conn.Close()
}

// next receives a frame. An error frame is an error.
func (k *call) next() (guestproto.Frame, error) {
	f, err := k.r.Next(guestproto.MaxPayload)
	if err != nil {
		return f, k.fail(err)
	}
	if f.Type != guestproto.FrameError {
		return f, nil
	}
	var e guestproto.Error
	if err := f.Decode(&e); err != nil {
		return f, k.corrupt(err)
	}
	return f, fault.New(fault.ParseKind(e.Kind), "%s", clean(e.Message))
}

// expect receives a frame of one type.
func (k *call) expect(typ guestproto.FrameType) (guestproto.Frame, error) {
	f, err := k.next()
	if err == nil && f.Type != typ {
		err = k.unexpected(f)
	}
	return f, err
}

func (k *call) fail(err error) error {
	return linkError(k.ctx, "request "+string(k.op)+" to the guest agent", err)
}

func (k *call) corrupt(err error) error {
	return fault.New(fault.Corrupt, "request %s to the guest agent: %w", k.op, err)
}

func (k *call) unexpected(f guestproto.Frame) error {
	return fault.New(fault.Corrupt, "request %s to the guest agent: unexpected frame %d", k.op, f.Type)
}

// simple is a request whose answer is FrameDone.
func (c *Client) simple(ctx context.Context, op guestproto.Op, args any) error {
	k, err := c.call(ctx, op, args)
	if err != nil {
		return err
	}
	defer k.close()
	_, err = k.expect(guestproto.FrameDone)
	return err
}

// linkError classifies an error of the link. The end of the context explains all others.
func linkError(ctx context.Context, what string, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fault.New(fault.KindOf(cause), "%s: %w", what, cause)
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	var netErr net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, net.ErrClosed), errors.As(err, &netErr), isMuxError(err):
		return fault.New(fault.Unavailable, "%s: the link ended: %w", what, err)
	default:
		return fault.New(fault.Corrupt, "%s: %w", what, err)
	}
}

// maxMessage is how much of a guest's error message is kept, in bytes.
const maxMessage = 4096

// clean makes text from a guest fit for a terminal and a log: bounded, one line, no control characters.
func clean(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage]
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		default:
			return r
		}
	}, strings.ToValidUTF8(s, "?"))
}
