package usernet

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"banger/internal/fault"
)

const (
	// guestDialTimeout bounds one dial of a forwarded connection.
	guestDialTimeout = 15 * time.Second
	// acceptPause is how long Forward waits after a failed accept (no descriptors left, most likely).
	acceptPause = 100 * time.Millisecond
)

// Dial connects to a TCP port of the guest, from the gateway's address. The connection has CloseWrite. It is the
// caller's to close; the end of Run breaks it. Errors: fault.Unavailable if the network does not run or the guest
// refuses (then errors.Is syscall.ECONNREFUSED), fault.Timeout and fault.Canceled as the context says.
func (n *Network) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	s, err := n.session()
	if err != nil {
		return nil, err
	}
	ep, wq, err := s.dialGuest(ctx, port)
	if err != nil {
		return nil, err
	}
	return gonet.NewTCPConn(wq, ep), nil
}

// Forward accepts connections of a listener (TCP or Unix) and carries each to a port of the guest, until the context
// ends (then it returns nil) or the listener is closed. It closes the listener, cuts the connections off, and returns
// when they have ended. It may be called before Run and outlives it; while Run does not run, and when the guest
// refuses, connections are reset. They count towards Config.MaxConns.
func (n *Network) Forward(ctx context.Context, listener net.Listener, port uint16) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	defer listener.Close() //nolint:errcheck // nothing to lose
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			conns.Go(func() { n.forward(ctx, conn, port) })
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fault.New(fault.Unavailable, "forward to port %d of the guest: %w", port, err)
		default:
			n.cfg.Log.Warn("accept a connection to forward", "port", port, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

// forward carries one connection to the guest.
func (n *Network) forward(ctx context.Context, conn net.Conn, port uint16) {
	defer conn.Close() //nolint:errcheck // ended by relay
	reset := func() {
		if tc, ok := conn.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
	}
	s, err := n.session()
	if err != nil || !s.enter() {
		reset()
		return
	}
	defer s.work.Done()
	free, ok := s.slot()
	if !ok {
		reset()
		return
	}
	defer free()
	dialing, cancel := context.WithTimeout(ctx, guestDialTimeout)
	defer cancel()
	ep, wq, err := s.dialGuest(dialing, port)
	if err != nil {
		n.cfg.Log.Debug("forward a connection", "port", port, "err", err)
		reset()
		return
	}
	s.carry(ctx, ep, wq, conn)
}

// dialGuest connects an endpoint to a port of the guest.
func (s *session) dialGuest(ctx context.Context, port uint16) (tcpip.Endpoint, *waiter.Queue, error) {
	if !s.enter() {
		return nil, nil, fault.New(fault.Unavailable, "the VM's network is shutting down")
	}
	defer s.work.Done()
	fail := func(err tcpip.Error) (tcpip.Endpoint, *waiter.Queue, error) {
		return nil, nil, dialError(port, err)
	}
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if terr != nil {
		return fail(terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)

	cfg := &s.net.cfg
	terr = ep.Bind(tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(cfg.Gateway.As4())})
	if terr == nil {
		terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(cfg.Guest.Addr().As4()), Port: port})
	}
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Abort()
			return nil, nil, fault.New(fault.KindOf(ctx.Err()), "connect to port %d of the guest: %w", port, ctx.Err())
		case <-ready:
			terr = ep.LastError()
		}
	}
	if terr != nil {
		ep.Close()
		return fail(terr)
	}
	return ep, wq, nil
}

// dialError says in the project's words why the guest was not reached.
func dialError(port uint16, err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return fault.New(fault.Unavailable, "connect to port %d of the guest: %w", port, syscall.ECONNREFUSED)
	case *tcpip.ErrTimeout:
		return fault.New(fault.Timeout, "connect to port %d of the guest: it does not answer", port)
	default:
		return fault.New(fault.Unavailable, "connect to port %d of the guest: %s", port, err)
	}
}
