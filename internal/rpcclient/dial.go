package rpcclient

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// Dial connects to an address from inside a VM's guest: network is tcp, tcp4, tcp6, udp or unix, vm a name, an id or an
// unambiguous prefix of one. The context bounds the connecting only.
//
// A udp connection keeps datagrams apart: each Write sends one, and each Read returns one, cut to the buffer's size.
func (c *Client) Dial(ctx context.Context, vm, network, address string) (*GuestConn, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	g := &GuestConn{
		stream: c.VMs.Dial(life), cancel: cancel, datagrams: network == "udp",
		local: guestAddr{network: network, address: "banger"}, remote: guestAddr{network: network, address: address},
	}
	start := &bangerv1.DialStart{Vm: vm, Network: network, Address: address}
	err := g.stream.Send(&bangerv1.DialRequest{Kind: &bangerv1.DialRequest_Start{Start: start}})
	if err == nil || errors.Is(err, io.EOF) { // then Receive says why
		_, err = g.stream.Receive()
	}
	if !stop() {
		err = ctx.Err()
		err = fault.New(fault.KindOf(err), "connect to %s in VM %s: %w", address, vm, err)
	}
	if err != nil {
		_ = g.Close()
		return nil, err
	}
	return g, nil
}

// GuestConn is a connection that was made in a guest. It has CloseWrite, and no deadlines. Reading and writing are
// independent of each other; Close ends both, also those under way.
type GuestConn struct {
	stream        *connect.BidiStreamForClient[bangerv1.DialRequest, bangerv1.DialResponse]
	cancel        context.CancelFunc
	datagrams     bool
	local, remote guestAddr

	reading sync.Mutex
	rest    []byte
	err     error // of reading, for good

	writing sync.Mutex
	ended   bool // no more is to be written
	lingers bool // closed, with the rest on its way
}

var _ net.Conn = (*GuestConn)(nil)

// Read reads what the guest's peer sends. Its orderly end is io.EOF; anything else is an error that says what broke.
func (g *GuestConn) Read(b []byte) (int, error) {
	g.reading.Lock()
	defer g.reading.Unlock()
	for len(g.rest) == 0 {
		if g.err != nil {
			return 0, g.err
		}
		res, err := g.stream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			g.err = err
			continue
		}
		switch kind := res.GetKind().(type) {
		case *bangerv1.DialResponse_Data:
			if g.datagrams {
				return copy(b, kind.Data), nil
			}
			g.rest = kind.Data
		case *bangerv1.DialResponse_End:
			g.err = io.EOF
		}
	}
	n := copy(b, g.rest)
	g.rest = g.rest[n:]
	return n, nil
}

// maxMessage is how many bytes go into one message.
const maxMessage = 64 << 10

// Write writes to the guest's peer. It waits as long as that takes nothing.
func (g *GuestConn) Write(b []byte) (int, error) {
	g.writing.Lock()
	defer g.writing.Unlock()
	if g.ended {
		return 0, net.ErrClosed
	}
	for sent := 0; ; {
		piece := b[sent:]
		if !g.datagrams {
			piece = piece[:min(len(piece), maxMessage)]
			if len(piece) == 0 {
				return sent, nil
			}
		}
		if err := g.stream.Send(&bangerv1.DialRequest{Kind: &bangerv1.DialRequest_Data{Data: piece}}); err != nil {
			return sent, broken(err)
		}
		if sent += len(piece); g.datagrams {
			return sent, nil
		}
	}
}

// CloseWrite tells the guest's peer that no more will come.
func (g *GuestConn) CloseWrite() error {
	g.writing.Lock()
	defer g.writing.Unlock()
	if g.ended {
		return nil
	}
	g.ended = true
	return broken(g.stream.Send(&bangerv1.DialRequest{Kind: &bangerv1.DialRequest_CloseWrite{CloseWrite: true}}))
}

// broken words the error of a stream that the daemon has ended, which Receive would explain.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "the connection in the guest has ended")
	}
	return err
}

// linger is how long what was written may take to arrive after Close. It is never more than what the buffers on the way hold.
const linger = time.Minute

// Close ends the connection. If both directions have ended in order, what was written still arrives, as with TCP, unless the
// process ends first; else it may not.
func (g *GuestConn) Close() error {
	switch inOrder, again := g.closing(); {
	case !inOrder:
		g.abort()
	case !again:
		cut := time.AfterFunc(linger, g.cancel)
		go func() {
			defer cut.Stop()
			defer g.abort()
			for { // the daemon ends the call when all is with the guest
				if _, err := g.stream.Receive(); err != nil {
					return
				}
			}
		}()
	}
	return nil
}

// closing reports whether both directions have ended well, and whether it has said so before. A direction in use has not ended.
func (g *GuestConn) closing() (inOrder, again bool) {
	if !g.reading.TryLock() {
		return false, false
	}
	defer g.reading.Unlock()
	if !g.writing.TryLock() {
		return false, false
	}
	defer g.writing.Unlock()
	if !g.ended || !errors.Is(g.err, io.EOF) {
		return false, false
	}
	again, g.lingers = g.lingers, true
	return true, again
}

// abort ends the connection at once.
func (g *GuestConn) abort() {
	g.cancel()
	// Both send and wait for nothing; what they return is that the stream was cancelled.
	_ = g.stream.CloseRequest()
	_ = g.stream.CloseResponse()
}

// LocalAddr returns a placeholder: the guest chose the address.
func (g *GuestConn) LocalAddr() net.Addr { return g.local }

// RemoteAddr returns the address that was dialled.
func (g *GuestConn) RemoteAddr() net.Addr { return g.remote }

// SetDeadline returns os.ErrNoDeadline, as its kin do.
func (*GuestConn) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline returns os.ErrNoDeadline.
func (*GuestConn) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline returns os.ErrNoDeadline.
func (*GuestConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type guestAddr struct{ network, address string }

func (a guestAddr) Network() string { return a.network }
func (a guestAddr) String() string  { return a.address }
