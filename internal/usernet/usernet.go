// Package usernet is the rootless network of one VM: a private LAN with the guest and a gateway on it, made by a
// userspace TCP/IP stack (gVisor's netstack). What the guest sends to the outside is carried over ordinary sockets of
// this process, if the [Policy] lets it; the gateway answers ARP, pings and DNS. [Network.Dial] and [Network.Forward]
// lead from the host into the guest.
//
// It owns the frames on the VM's stream socket, the sockets that it opens for the guest, and the limits on both. It
// does not own the VMM, the guest's configuration (the guest is given its address, there is no DHCP) or the choice of
// the policy. IPv4 only: other frames are dropped.
//
// The guest is hostile. Everything that it can make this package hold is bounded: frames that wait for it (2 MiB),
// handshakes and dials under way, connections, UDP and ping flows, DNS queries, and the buffers of each; with them the
// goroutines and descriptors. What it may not reach is refused at once (RST, ICMP "administratively prohibited"), not
// left to time out.
//
// Lifecycle: New only checks the configuration. Run makes the stack, owns every goroutine and socket, and has ended
// them all when it returns; then it may be called again with another connection (a restored VM), with nothing carried
// over. Goroutines at rest: Run's caller (reads frames), one that writes frames, and the stack's (one per CPU). Each
// connection adds two, each flow one. Locks are leaves: none is held over I/O or while another is taken.
package usernet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/fault"
)

// Defaults of [Config].
const (
	DefaultMTU      = 1500
	DefaultMaxConns = 1024
	DefaultMaxFlows = 512
)

// Config describes a network. The zero value of each field but Log means its default.
type Config struct {
	Guest    netip.Prefix     // the guest's address and its network; 10.0.2.15/24
	Gateway  netip.Addr       // the gateway's and DNS server's address in that network; 10.0.2.2
	MAC      net.HardwareAddr // the gateway's; 52:55:0a:00:02:02
	GuestMAC net.HardwareAddr // the guest's, so that it can be reached before it has sent anything; learnt if empty
	MTU      int              // bytes of IP packet per frame, 576 to 65520; DefaultMTU
	Policy   Policy
	// Resolvers are the DNS servers that are asked on the guest's behalf, in this order, from the host; the guest's
	// policy does not apply to them. If there are none, those in /etc/resolv.conf, which is read again when it changes.
	Resolvers []netip.AddrPort
	MaxConns  int // TCP connections at a time, both directions together; DefaultMaxConns
	MaxFlows  int // UDP and ping flows at a time; the least recently used makes room; DefaultMaxFlows
	Log       *slog.Logger
}

// Stats counts what has happened since New. "In" is from the guest, "out" to the guest.
type Stats struct {
	FramesIn, BytesIn   uint64
	FramesOut, BytesOut uint64
	Malformed           uint64 // frames and packets that were dropped because they are broken or foreign
	QueueDrops          uint64 // frames that were dropped because the guest did not read
	Conns, Flows        uint64 // opened, ever
	OpenConns           int
	OpenFlows           int
	Denied              uint64 // connections, datagrams and pings that the policy refused
	Limited             uint64 // connections, datagrams and queries that met a limit
	Queries             uint64 // DNS queries answered
	QueryFailures       uint64 // of those, how many with SERVFAIL
}

type counters struct {
	framesIn, bytesIn, framesOut, bytesOut atomic.Uint64
	malformed, queueDrops, conns, flows    atomic.Uint64
	denied, limited, queries, failures     atomic.Uint64
	openConns, openFlows                   atomic.Int64
}

// Network is the network of one VM. Its methods may be called concurrently.
type Network struct {
	cfg   Config
	host  hostAddrs
	stats counters
	quiet throttle

	mu      sync.Mutex
	running *session // nil unless Run runs
}

// New checks a configuration and returns the network it describes. The error is of kind fault.Invalid.
func New(cfg Config) (*Network, error) {
	if !cfg.Guest.IsValid() {
		cfg.Guest = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, 15}), 24)
	}
	if !cfg.Gateway.IsValid() {
		cfg.Gateway = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	}
	if len(cfg.MAC) == 0 {
		cfg.MAC = net.HardwareAddr{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
	}
	orDefault(&cfg.MTU, DefaultMTU)
	orDefault(&cfg.MaxConns, DefaultMaxConns)
	orDefault(&cfg.MaxFlows, DefaultMaxFlows)
	switch {
	case cfg.Log == nil:
		return nil, fault.New(fault.Invalid, "network configuration: no logger")
	case !cfg.Guest.Addr().Is4() || !cfg.Gateway.Is4():
		return nil, fault.New(fault.Invalid, "network configuration: guest %s and gateway %s must be IPv4", cfg.Guest, cfg.Gateway)
	case !cfg.Guest.Contains(cfg.Gateway) || cfg.Guest.Addr() == cfg.Gateway:
		return nil, fault.New(fault.Invalid, "network configuration: gateway %s is not another address of %s", cfg.Gateway, cfg.Guest.Masked())
	case len(cfg.MAC) != 6 || (len(cfg.GuestMAC) != 0 && len(cfg.GuestMAC) != 6):
		return nil, fault.New(fault.Invalid, "network configuration: hardware addresses have six bytes")
	case cfg.MTU < 576 || cfg.MTU > 65520:
		return nil, fault.New(fault.Invalid, "network configuration: an MTU of %d is not in 576-65520", cfg.MTU)
	case cfg.MaxConns < 0 || cfg.MaxFlows < 0:
		return nil, fault.New(fault.Invalid, "network configuration: negative limit")
	case cfg.Policy.Mode != "" && cfg.Policy.Mode != Open && cfg.Policy.Mode != Closed:
		return nil, fault.New(fault.Invalid, "network configuration: unknown policy mode %q", cfg.Policy.Mode)
	}
	return &Network{cfg: cfg}, nil
}

func orDefault(v *int, def int) {
	if *v == 0 {
		*v = def
	}
}

// Run carries the frames on a connected stream socket, each preceded by its length as a 32-bit big-endian number, until
// the context ends or the peer closes the stream (both are success) or the stream fails. It closes the connection.
// A second Run at the same time fails with fault.Busy.
func (n *Network) Run(ctx context.Context, conn net.Conn) error {
	defer conn.Close() //nolint:errcheck // nothing is buffered
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := n.begin()
	if err != nil {
		return err
	}
	s.serve(ctx)

	var writing error
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	written := make(chan struct{})
	go func() {
		defer close(written)
		writing = s.link.write(ctx, conn)
		cancel()
	}()
	reading := s.link.read(conn)
	ended := ctx.Err() != nil // by the caller, or because writing failed
	cancel()
	<-written
	n.end(s)

	switch {
	case !ended && errors.Is(reading, io.EOF):
		return nil
	case !ended:
		return fault.New(fault.KindOf(reading), "read frames from the VMM: %w", reading)
	case writing != nil && !errors.Is(writing, net.ErrClosed) && !peerGone(writing):
		return fault.New(fault.Internal, "write frames to the VMM: %w", writing)
	default:
		return nil
	}
}

func (n *Network) begin() (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running != nil {
		return nil, fault.New(fault.Busy, "the network is running already")
	}
	s, err := newSession(n)
	if err != nil {
		return nil, err
	}
	n.running = s
	return s, nil
}

func (n *Network) end(s *session) {
	s.close()
	n.mu.Lock()
	n.running = nil
	n.mu.Unlock()
}

// session returns the running session.
func (n *Network) session() (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running == nil {
		return nil, fault.New(fault.Unavailable, "the VM's network is not running")
	}
	return n.running, nil
}

// Stats returns the counters.
func (n *Network) Stats() Stats {
	c := &n.stats
	return Stats{
		FramesIn: c.framesIn.Load(), BytesIn: c.bytesIn.Load(), FramesOut: c.framesOut.Load(), BytesOut: c.bytesOut.Load(),
		Malformed: c.malformed.Load(), QueueDrops: c.queueDrops.Load(), Conns: c.conns.Load(), Flows: c.flows.Load(),
		OpenConns: int(c.openConns.Load()), OpenFlows: int(c.openFlows.Load()),
		Denied: c.denied.Load(), Limited: c.limited.Load(), Queries: c.queries.Load(), QueryFailures: c.failures.Load(),
	}
}

// allowed decides whether the guest may reach a destination, and counts and logs it if not.
func (n *Network) allowed(proto string, dst netip.AddrPort) bool {
	verdict := Verdict{Reason: "no such host in the VM's network"}
	if !n.cfg.Guest.Contains(dst.Addr()) {
		verdict = n.cfg.Policy.Check(dst, n.host.contains)
	}
	if !verdict.Allowed {
		n.deny(proto, dst, verdict.Reason)
	}
	return verdict.Allowed
}

// allowedLocal decides about a destination that turned out to be served by this host, though no interface has it.
func (n *Network) allowedLocal(proto string, dst netip.AddrPort) bool {
	verdict := n.cfg.Policy.Check(dst, func(netip.Addr) bool { return true })
	if !verdict.Allowed {
		n.deny(proto, dst, verdict.Reason)
	}
	return verdict.Allowed
}

func (n *Network) deny(proto string, dst netip.AddrPort, reason string) {
	n.stats.denied.Add(1)
	if more, ok := n.quiet.pass(time.Now()); ok {
		n.cfg.Log.Info("guest traffic denied", "proto", proto, "dst", dst, "reason", reason, "unlogged", more)
	}
}

func (n *Network) limited(what string) {
	n.stats.limited.Add(1)
	if more, ok := n.quiet.pass(time.Now()); ok {
		n.cfg.Log.Warn("guest traffic over a limit", "what", what, "unlogged", more)
	}
}

// throttle lets one event per second through, so that a guest cannot fill the log.
type throttle struct {
	mu         sync.Mutex
	last       time.Time
	suppressed int
}

// pass reports whether an event may be logged, and how many were held back since the last.
func (t *throttle) pass(now time.Time) (suppressed int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.last) < time.Second {
		t.suppressed++
		return 0, false
	}
	suppressed, t.suppressed, t.last = t.suppressed, 0, now
	return suppressed, true
}
