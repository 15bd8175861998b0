package rpcclient

import (
	"context"
	"errors"
	"io"
	"net"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// Listen listens inside a VM's guest, as a user of it, until the context ends: network is tcp, tcp4, tcp6 or unix, vm a name, an id or
// an unambiguous prefix of one. An empty unix address is a new one that only the user can reach. The connections are
// [GuestConn]; Close ends the listener, not them.
func (c *Client) Listen(ctx context.Context, vm, network, address, user string) (*GuestListener, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.VMs.Listen(ctx, connect.NewRequest(&bangerv1.ListenRequest{Vm: vm, Network: network, Address: address, User: user}))
	if err != nil {
		cancel()
		return nil, err
	}
	l := &GuestListener{ctx: ctx, client: c, vm: vm, stream: stream, cancel: cancel}
	if !stream.Receive() {
		err := stream.Err()
		if err == nil {
			err = errEnded()
		}
		_ = l.Close()
		return nil, err
	}
	l.addr = guestAddr{network: network, address: stream.Msg().GetListening()}
	return l, nil
}

// GuestListener is a listener in a guest. Accept is for one goroutine.
type GuestListener struct {
	ctx    context.Context //nolint:containedctx // the listener's life
	client *Client
	vm     string
	stream *connect.ServerStreamForClient[bangerv1.ListenResponse]
	cancel context.CancelFunc
	addr   guestAddr
}

var _ net.Listener = (*GuestListener)(nil)

// Accept waits for a connection. One that has gone before it was taken is passed over.
func (l *GuestListener) Accept() (net.Conn, error) {
	for l.stream.Receive() {
		a := l.stream.Msg().GetAccepted()
		conn, err := l.client.Dial(l.ctx, l.vm, networkAccepted, a.GetNumber())
		if err != nil {
			if fault.Is(err, fault.NotFound) && l.ctx.Err() == nil {
				continue
			}
			return nil, err
		}
		conn.remote = guestAddr{network: l.addr.network, address: a.GetFrom()}
		return conn, nil
	}
	switch err := l.stream.Err(); {
	case l.ctx.Err() != nil:
		return nil, net.ErrClosed
	case err == nil, errors.Is(err, io.EOF):
		return nil, errEnded()
	default:
		return nil, err
	}
}

func errEnded() error { return fault.New(fault.Unavailable, "the listener in the guest has ended") }

// networkAccepted is what a connection that a listener has accepted is dialled by, with its number as the address.
const networkAccepted = "accepted"

// Addr is the address in the guest that it got.
func (l *GuestListener) Addr() net.Addr { return l.addr }

// Close ends the listener.
func (l *GuestListener) Close() error {
	l.cancel()
	_ = l.stream.Close() // that it was cancelled
	return nil
}
