package monitorlink

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// Published is a port of the host that leads into the guest, as it is.
type Published struct {
	Protocol  string
	Host      netip.AddrPort
	GuestPort uint16
}

// Socket is one end of a published port.
type Socket struct {
	Published

	Stream  net.Listener   // of a TCP port
	Packets net.PacketConn // of a UDP port
}

// Close closes the socket.
func (s Socket) Close() error {
	if s.Stream != nil {
		return s.Stream.Close()
	}
	return s.Packets.Close()
}

// Listen opens the sockets of published ports, all or none. A port that is taken is fault.Exists.
func Listen(wanted []microvm.Publish) ([]Socket, error) {
	var open []Socket
	for _, p := range wanted {
		s, err := listen(p)
		if err != nil {
			CloseAll(open)
			return nil, err
		}
		open = append(open, s)
	}
	return open, nil
}

// CloseAll closes sockets.
func CloseAll(sockets []Socket) {
	for _, s := range sockets {
		_ = s.Close()
	}
}

func listen(p microvm.Publish) (s Socket, err error) {
	s.Published = Published{Protocol: p.Protocol, Host: p.Host(), GuestPort: p.GuestPort}
	if p.Protocol == microvm.ProtocolUDP {
		var pc *net.UDPConn
		if pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.Host())); err == nil {
			s.Packets, s.Host = pc, boundTo(pc.LocalAddr(), p)
		}
	} else {
		var ln *net.TCPListener
		if ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.Host())); err == nil {
			s.Stream, s.Host = ln, boundTo(ln.Addr(), p)
		}
	}
	kind := fault.Internal
	switch {
	case err == nil:
		return s, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return s, fault.New(fault.Exists, "the port %s/%s of this host is taken", p.Host(), p.Protocol).
			WithHint("see who has it: ss -Hnlp sport = %d; or publish another one", p.HostPort)
	case errors.Is(err, syscall.EACCES):
		kind = fault.Denied
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		kind = fault.Invalid
	}
	return s, fault.New(kind, "publish the port %s/%s: %w", p.Host(), p.Protocol, err)
}

// boundTo is what was asked for, with the port that the kernel chose.
func boundTo(addr net.Addr, p microvm.Publish) netip.AddrPort {
	bound, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return p.Host()
	}
	return netip.AddrPortFrom(p.Address, bound.Port())
}
