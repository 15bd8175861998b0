package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxDialing bounds the guest's connections that are being dialed on the host or shaking hands with the guest.
	// A SYN beyond is dropped; the guest's TCP sends it again after a second.
	maxDialing = 256
	// dialTimeout bounds one dial on the host. The guest keeps trying for longer.
	dialTimeout = 30 * time.Second
	dnsPort     = 53
)

// acceptTCP returns the handler for TCP segments that belong to no connection. Where it returns false the stack answers
// with RST.
//
// A connection is dialed on the host first and accepted only then, so that the guest sees what became of it.
func (s *session) acceptTCP(ctx context.Context) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	forwarder := tcp.NewForwarder(s.stack, defaultWindow, 2*maxDialing, func(r *tcp.ForwarderRequest) {
		id := r.ID()
		defer s.work.Done()
		dst := endpoint4(id.LocalAddress, id.LocalPort)
		if dst == s.dnsServer() {
			s.connectDNS(ctx, r)
		} else {
			s.connect(ctx, r, dst)
		}
	})
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		flags := header.TCP(pkt.TransportHeader().Slice()).Flags()
		if !flags.Contains(header.TCPFlagSyn) || flags.Contains(header.TCPFlagAck) {
			return false
		}
		if dst := endpoint4(id.LocalAddress, id.LocalPort); dst != s.dnsServer() && !s.net.allowed("tcp", dst) {
			return false
		}
		fresh, ok := s.claim(id, quoteOf(pkt))
		if !ok {
			s.net.limited("new connections")
			return true
		}
		if fresh && !forwarder.HandlePacket(id, pkt) {
			s.release(id)
			s.work.Done()
			return false
		}
		return true
	}
}

func (s *session) dnsServer() netip.AddrPort { return netip.AddrPortFrom(s.net.cfg.Gateway, dnsPort) }

// claim enters a connection request among the pending ones and counts its goroutine. A repeated request is not fresh.
func (s *session) claim(id stack.TransportEndpointID, syn quote) (fresh, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.pending[id]; known {
		return false, true
	}
	if s.closing || len(s.pending) >= maxDialing {
		return false, false
	}
	s.pending[id] = syn
	s.work.Add(1)
	return true, true
}

// release ends a request, and returns its SYN.
func (s *session) release(id stack.TransportEndpointID) quote {
	s.mu.Lock()
	defer s.mu.Unlock()
	syn := s.pending[id]
	delete(s.pending, id)
	return syn
}

// slot takes one of the connection slots; the connection gives it back with free.
func (s *session) slot() (free func(), ok bool) {
	select {
	case s.slots <- struct{}{}:
		s.net.stats.conns.Add(1)
		s.net.stats.openConns.Add(1)
		return func() {
			s.net.stats.openConns.Add(-1)
			<-s.slots
		}, true
	default:
		s.net.limited("connections")
		return nil, false
	}
}

// connect dials on the host what the guest asks for, and carries the bytes.
func (s *session) connect(ctx context.Context, r *tcp.ForwarderRequest, dst netip.AddrPort) {
	free, ok := s.slot()
	if !ok {
		s.complete(r, true)
		return
	}
	defer free()

	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp4", dst.String())
	if err != nil {
		s.refuse(r, err)
		return
	}
	defer conn.Close() //nolint:errcheck // ended by relay
	if sameHost(conn) && !s.net.allowedLocal("tcp", dst) {
		s.complete(r, true)
		return
	}
	if ep, wq, ok := s.accept(r); ok {
		s.carry(ctx, ep, wq, conn)
	}
}

// accept shakes hands with the guest.
func (s *session) accept(r *tcp.ForwarderRequest) (tcpip.Endpoint, *waiter.Queue, bool) {
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	s.complete(r, err != nil)
	return ep, &wq, err == nil
}

// complete ends a connection request.
func (s *session) complete(r *tcp.ForwarderRequest, reset bool) quote {
	id := r.ID()
	r.Complete(reset)
	return s.release(id)
}

// refuse answers a connection request that could not be dialed as the network would have.
func (s *session) refuse(r *tcp.ForwarderRequest, err error) {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		s.complete(r, false) // the guest tries again, and gives up by its own clock
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		s.link.unreachable(header.ICMPv4HostUnreachable, s.complete(r, false))
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		s.net.limited("descriptors of the host")
		s.complete(r, true)
	default:
		s.complete(r, true)
	}
}

// connectDNS accepts a connection to the gateway's DNS server and serves it.
func (s *session) connectDNS(ctx context.Context, r *tcp.ForwarderRequest) {
	free, ok := s.slot()
	if !ok {
		s.complete(r, true)
		return
	}
	defer free()
	if ep, wq, ok := s.accept(r); ok {
		small(ep)
		s.dns.serveTCP(ctx, gonet.NewTCPConn(wq, ep))
		finishEndpoint(ep, wq)
	}
}

// carry copies between a guest's connection and a host's until both have ended.
func (s *session) carry(ctx context.Context, ep tcpip.Endpoint, wq *waiter.Queue, conn net.Conn) {
	if len(s.slots) > crowd {
		small(ep)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if !relay(s.spawn, ep, wq, conn) {
		ep.Abort()
	}
	finishEndpoint(ep, wq)
}

// small gives a connection buffers that do not grow.
func small(ep tcpip.Endpoint) {
	ep.SocketOptions().SetReceiveBufferSize(smallWindow, true)
	ep.SocketOptions().SetSendBufferSize(smallWindow, true)
}

// finishEndpoint closes an endpoint and waits until it is gone from the stack, so that its slot stays taken as long as
// it needs memory. A guest that does not close its half is cut off.
func finishEndpoint(ep tcpip.Endpoint, wq *waiter.Queue) {
	gone, ch := waiter.NewChannelEntry(waiter.EventHUp)
	wq.EventRegister(&gone)
	defer wq.EventUnregister(&gone)
	ep.Close()
	limit := time.NewTimer(finWait)
	defer limit.Stop()
	for {
		switch tcp.EndpointState(ep.State()) {
		case tcp.StateClose, tcp.StateError:
			return
		default:
		}
		select {
		case <-ch:
		case <-limit.C:
			ep.Abort()
			return
		}
	}
}

// sameHost reports whether a connection leads back to this host: the kernel then chose the destination's address as
// the source's.
func sameHost(conn net.Conn) bool {
	local, err1 := netip.ParseAddrPort(conn.LocalAddr().String())
	remote, err2 := netip.ParseAddrPort(conn.RemoteAddr().String())
	return err1 == nil && err2 == nil && local.Addr() == remote.Addr()
}
