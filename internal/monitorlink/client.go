package monitorlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"banger/internal/fault"
)

// Client reaches one monitor by its socket. It holds no connection; each call makes its own.
type Client struct {
	socket string
}

// NewClient returns a client of the monitor that listens on the socket.
func NewClient(socket string) *Client { return &Client{socket: socket} }

// open connects, sends the request and reads the answer.
func (c *Client) open(ctx context.Context, op Op) (*net.UnixConn, error) {
	return c.request(ctx, Request{Op: op})
}

func (c *Client) request(ctx context.Context, req Request) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if ctx.Err() != nil {
		if err == nil {
			_ = conn.Close()
		}
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "reach the VM's monitor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	var res Response
	err = errors.Join(WriteLine(conn, req), ReadLine(conn, &res))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fault.New(fault.Unavailable, "talk to the VM's monitor: %w", err)
	}
	if res.Kind != "" {
		_ = conn.Close()
		return nil, &fault.Error{Kind: fault.ParseKind(res.Kind), Message: res.Message, Hint: res.Hint}
	}
	return conn.(*net.UnixConn), nil // a unix dial makes one
}

// OpenStream opens a stream to the agent in the guest.
func (c *Client) OpenStream(ctx context.Context) (net.Conn, error) { return c.open(ctx, OpStream) }

// Console attaches to the serial console.
func (c *Client) Console(ctx context.Context) (net.Conn, error) { return c.open(ctx, OpConsole) }

// Follow streams the console's log from its beginning and then goes on with what comes.
func (c *Client) Follow(ctx context.Context) (net.Conn, error) { return c.open(ctx, OpFollow) }

// Kill ends the VMM and returns when it is gone.
func (c *Client) Kill(ctx context.Context) error { return c.do(ctx, OpKill) }

// Signal sends a signal to the VMM process.
func (c *Client) Signal(ctx context.Context, signal int) error {
	conn, err := c.request(ctx, Request{Op: OpSignal, Signal: signal})
	if err != nil {
		return err
	}
	return conn.Close()
}

// Pause stops the vCPUs.
func (c *Client) Pause(ctx context.Context) error { return c.do(ctx, OpPause) }

// Resume lets the vCPUs go on.
func (c *Client) Resume(ctx context.Context) error { return c.do(ctx, OpResume) }

// GrowDisk makes a disk of the VM larger; size is in bytes. Errors are those of hypervisor.DiskGrower, and
// fault.Unsupported if the VMM cannot, or the monitor is of an older banger.
func (c *Client) GrowDisk(ctx context.Context, serial string, size int64) error {
	conn, err := c.request(ctx, Request{Op: OpGrow, Grow: &GrowSpec{Serial: serial, Size: size}})
	if err != nil {
		return err
	}
	return conn.Close()
}

// Save makes a snapshot of the VM, which goes on.
func (c *Client) Save(ctx context.Context, spec SaveSpec) (Saved, error) {
	conn, err := c.request(ctx, Request{Op: OpSave, Save: &spec})
	if err != nil {
		return Saved{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing to flush
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var saved Saved
	if err := ReadLine(conn, &saved); err != nil {
		return Saved{}, errors.Join(context.Cause(ctx), fmt.Errorf("save the VM: %w", err))
	}
	return saved, nil
}

func (c *Client) do(ctx context.Context, op Op) error {
	conn, err := c.open(ctx, op)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Watch follows a monitor's status.
type Watch struct {
	conn net.Conn
	in   *bufio.Reader
}

// Watch begins to follow the status. The context bounds the beginning only.
func (c *Client) Watch(ctx context.Context) (*Watch, error) {
	conn, err := c.open(ctx, OpWatch)
	if err != nil {
		return nil, err
	}
	return &Watch{conn: conn, in: bufio.NewReaderSize(conn, 4096)}, nil
}

// Next waits for the next status; the first comes at once. io.EOF: the monitor is gone.
func (w *Watch) Next() (Status, error) {
	line, err := w.in.ReadBytes('\n') // the monitor is ours: its lines are short
	if err != nil {
		if len(line) > 0 || !errors.Is(err, io.EOF) {
			err = fmt.Errorf("read monitor status: %w", err)
		}
		return Status{}, err
	}
	var s Status
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fault.New(fault.Corrupt, "monitor status: %w", err)
	}
	return s, nil
}

// Close ends the watch; a Next under way returns an error.
func (w *Watch) Close() error { return w.conn.Close() }
