package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// flowIdle is how long a flow lives without a packet either way (RFC 4787 asks for more than 2 minutes in general;
// with connected sockets and a guest that can always send again, less will do).
const flowIdle = 90 * time.Second

// flowKey names a flow: a guest's port (or ping identifier) and a destination. Pings have no destination port.
type flowKey struct {
	ping bool
	from uint16
	to   netip.AddrPort
}

// flow is one connected socket of the host that stands for a guest's.
type flow struct {
	key   flowKey
	conn  flowConn
	raw   syscall.RawConn
	about quote        // for ICMP errors
	used  atomic.Int64 // when a packet last passed, Unix nanoseconds
}

// flowConn is what a flow needs of its socket; *net.UDPConn and *os.File (a ping socket) have it.
type flowConn interface {
	syscall.Conn
	SetReadDeadline(t time.Time) error
	Close() error
}

// flows carries datagrams and pings between the guest and the host's sockets. Its lock guards the table, and is held
// over the opening of a socket, which does not block.
type flows struct {
	s    *session
	idle time.Duration

	mu     sync.Mutex
	table  map[flowKey]*flow
	closed bool
}

func newFlows(s *session) *flows {
	return &flows{s: s, idle: flowIdle, table: make(map[flowKey]*flow)}
}

// quoteOf returns the beginning of a packet in the stack.
func quoteOf(pkt *stack.PacketBuffer) (q quote) {
	n := copy(q[:ipv4Size], pkt.NetworkHeader().Slice())
	copy(q[n:], pkt.TransportHeader().Slice())
	return q
}

// acceptUDP returns the handler for UDP datagrams. Where it returns false the stack answers "port unreachable".
func (s *session) acceptUDP(ctx context.Context) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
	return func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		dst := endpoint4(id.LocalAddress, id.LocalPort)
		size := int(header.UDP(pkt.TransportHeader().Slice()).Length()) - udpSize
		if size < 0 || size > pkt.Data().Size() {
			s.net.stats.malformed.Add(1)
			return true
		}
		buf, _ := chunks.Get().(*[chunk]byte)
		defer chunks.Put(buf)
		w := tcpip.SliceWriter(buf[:size])
		if size != 0 {
			// A full writer is how the end of the datagram, before its padding, is reported.
			_, _ = pkt.Data().ReadTo(&w, true)
		}
		payload := buf[:size]
		switch {
		case dst == s.dnsServer():
			s.queryDNS(ctx, endpoint4(id.RemoteAddress, id.RemotePort), payload)
		case dst.Addr() == s.net.cfg.Gateway:
			return false
		case id.LocalPort == 0 || id.RemotePort == 0:
			s.net.stats.malformed.Add(1)
		default:
			s.flows.send(ctx, flowKey{from: id.RemotePort, to: dst}, quoteOf(pkt), payload)
		}
		return true
	}
}

// queryDNS answers one query to the gateway.
func (s *session) queryDNS(ctx context.Context, from netip.AddrPort, query []byte) {
	if !s.dns.begin() {
		s.net.limited("DNS queries")
		return
	}
	query = append([]byte(nil), query...)
	if !s.spawn(func() {
		defer s.dns.finish()
		if answer := s.dns.answer(ctx, query, false); answer != nil {
			s.link.sendUDP(s.dnsServer(), from, answer)
		}
	}) {
		s.dns.finish()
	}
}

// ping returns the handler for echo requests: the gateway answers for itself, others are asked if the host lets
// unprivileged users ping (net.ipv4.ping_group_range).
func (f *flows) ping(ctx context.Context) func(netip.Addr, uint16, []byte) {
	return func(dst netip.Addr, ident uint16, packet []byte) {
		if dst == f.s.net.cfg.Gateway {
			msg := append([]byte(nil), packet[ipv4Size:]...)
			echoReply(msg, ident)
			f.s.link.sendIPv4(header.ICMPv4ProtocolNumber, dst, nil, msg)
			return
		}
		f.send(ctx, flowKey{ping: true, from: ident, to: netip.AddrPortFrom(dst, 0)}, quote(packet[:quotedSize]), packet[ipv4Size:])
	}
}

// send carries a packet out, by the flow it belongs to or a new one. What cannot be sent is answered by an ICMP error
// or lost, like any datagram.
func (f *flows) send(ctx context.Context, key flowKey, about quote, payload []byte) {
	fl, err := f.find(ctx, key, about)
	if err != nil {
		code := header.ICMPv4HostUnreachable
		if errors.Is(err, errProhibited) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
			code = header.ICMPv4AdminProhibited
		}
		f.s.link.unreachable(code, about)
		return
	}
	fl.used.Store(time.Now().UnixNano())
	// An error that is reported here is about an earlier datagram (ICMP): tell the guest and send this one all the same.
	if err := fl.write(payload); err != nil && f.report(fl, err) {
		_ = fl.write(payload)
	}
}

// write sends without waiting: when the host's queue is full, the datagram is lost.
func (fl *flow) write(payload []byte) error {
	var werr error
	err := fl.raw.Write(func(fd uintptr) bool {
		_, werr = unix.Write(int(fd), payload)
		return true
	})
	return errors.Join(err, werr)
}

// report passes an ICMP error that the host got on to the guest. It is false for other errors.
func (f *flows) report(fl *flow, err error) bool {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		f.s.link.unreachable(header.ICMPv4PortUnreachable, fl.about)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		f.s.link.unreachable(header.ICMPv4HostUnreachable, fl.about)
	default:
		return false
	}
	return true
}

var errProhibited = errors.New("prohibited by the policy")

// find returns the flow for a key, and makes it if there is none.
func (f *flows) find(ctx context.Context, key flowKey, about quote) (*flow, error) {
	f.mu.Lock()
	fl, ok := f.table[key]
	f.mu.Unlock()
	if ok {
		return fl, nil
	}
	proto := "udp"
	if key.ping {
		proto = "icmp"
	}
	if !f.s.net.allowed(proto, key.to) {
		return nil, errProhibited
	}
	conn, err := openFlow(ctx, key, func() bool { return f.s.net.allowedLocal(proto, key.to) })
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	fl = &flow{key: key, conn: conn, raw: raw, about: about}
	fl.used.Store(time.Now().UnixNano())
	if !f.add(fl) {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return fl, nil
}

// add enters a flow, at the cost of the least recently used one if there is no room, and starts its reader. (Packets of
// one guest arrive one after the other, so that nobody else can have added the same key.)
func (f *flows) add(fl *flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	if len(f.table) >= f.s.net.cfg.MaxFlows {
		var oldest *flow
		for _, other := range f.table {
			if oldest == nil || other.used.Load() < oldest.used.Load() {
				oldest = other
			}
		}
		f.removeLocked(oldest)
		f.s.net.limited("flows")
	}
	if !f.s.spawn(func() { f.receive(fl) }) {
		return false
	}
	f.table[fl.key] = fl
	f.s.net.stats.flows.Add(1)
	f.s.net.stats.openFlows.Add(1)
	return true
}

func (f *flows) remove(fl *flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removeLocked(fl)
}

func (f *flows) removeLocked(fl *flow) {
	if f.table[fl.key] == fl {
		delete(f.table, fl.key)
		f.s.net.stats.openFlows.Add(-1)
	}
	_ = fl.conn.Close() // ends receive
}

// close ends all flows.
func (f *flows) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, fl := range f.table {
		f.removeLocked(fl)
	}
}

// receive carries packets from the host's socket to the guest until the flow has been idle for too long, was removed,
// or its socket fails.
func (f *flows) receive(fl *flow) {
	defer f.remove(fl)
	r := hostReader{fl.raw}
	for {
		idle := time.Until(time.Unix(0, fl.used.Load()).Add(f.idle))
		if idle <= 0 || fl.conn.SetReadDeadline(time.Now().Add(idle)) != nil {
			return
		}
		err := r.next(func(b []byte) error {
			fl.used.Store(time.Now().UnixNano())
			f.toGuest(fl.key, b)
			return nil
		})
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !f.report(fl, err) {
			return
		}
	}
}

func (f *flows) toGuest(key flowKey, b []byte) {
	if !key.ping {
		f.s.link.sendUDP(key.to, netip.AddrPortFrom(f.s.net.cfg.Guest.Addr(), key.from), b)
		return
	}
	if len(b) >= icmpSize && header.ICMPv4(b).Type() == header.ICMPv4EchoReply {
		echoReply(b, key.from)
		f.s.link.sendIPv4(header.ICMPv4ProtocolNumber, key.to.Addr(), nil, b)
	}
}

// openFlow opens the connected socket of a flow. allowedLocal is asked if it leads back to this host.
func openFlow(ctx context.Context, key flowKey, allowedLocal func() bool) (flowConn, error) {
	if key.ping {
		return openPing(key.to.Addr())
	}
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) { // package net allows broadcasts; a guest must not send any
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
		})
		return errors.Join(err, serr)
	}}
	conn, err := dialer.DialContext(ctx, "udp4", key.to.String())
	if err != nil {
		return nil, err
	}
	uc, ok := conn.(*net.UDPConn)
	if !ok || (sameHost(conn) && !allowedLocal()) {
		_ = conn.Close()
		return nil, errProhibited
	}
	return uc, nil
}

// openPing opens a ping socket (icmp(7)): the kernel sets the identifier and lets only replies to it through.
func openPing(dst netip.Addr) (flowConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("open a ping socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: dst.As4()}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect a ping socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "ping"), nil
}
