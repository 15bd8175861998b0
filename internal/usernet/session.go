package usernet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"banger/internal/fault"
)

const (
	nicID = 1

	// minWindow and maxWindow bound the buffers of one connection, each way. The round trip to a guest is a
	// millisecond or so: a mebibyte is a window for 1 GB/s.
	minWindow     = 4 << 10
	defaultWindow = 256 << 10
	maxWindow     = 1 << 20
	// crowd is how many connections may have windows that grow; those beyond get smallWindow. Together they bound
	// what a guest can make the stack buffer.
	crowd       = 64
	smallWindow = 32 << 10

	// timeWait is short because nothing on a local stream arrives late.
	timeWait = time.Second
	// finWait bounds how long a closed connection may wait for the guest to close its half.
	finWait = 10 * time.Second
	// minRTO is long because guests answer late (emulated, or on a busy host) far more often than a frame is lost.
	// maxRTO is short so that connections go on soon after a pause of the VM. (The stack never stops sending again;
	// retries bounds only the probes of a window that the guest closed before the pause: about two hours.)
	minRTO  = time.Second
	maxRTO  = 10 * time.Second
	retries = 720
	// synRetries makes a handshake that the guest does not finish fail after about half a minute.
	synRetries = 4
)

// session is what exists while Run runs: the stack and everything that hangs on it.
type session struct {
	net   *Network
	stack *stack.Stack
	link  *link
	flows *flows
	dns   *resolver
	slots chan struct{} // slots for TCP connections

	mu      sync.Mutex
	closing bool                                // no more work is started
	work    sync.WaitGroup                      // every goroutine of the session but Run's own
	pending map[stack.TransportEndpointID]quote // SYNs being dealt with
}

func newSession(n *Network) (*session, error) {
	s := &session{
		net:     n,
		link:    newLink(&n.cfg, &n.stats),
		slots:   make(chan struct{}, n.cfg.MaxConns),
		pending: make(map[stack.TransportEndpointID]quote),
	}
	s.flows = newFlows(s)
	s.dns = newResolver(&n.cfg, &n.stats)
	st, err := newStack(&n.cfg, s.link)
	if err != nil {
		return nil, err
	}
	s.stack = st
	return s, nil
}

// newStack makes a stack that takes what is sent to any address as its own.
func newStack(cfg *Config, l *link) (*stack.Stack, error) {
	st := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocolWithOptions(ipv4.Options{
			AllowExternalLoopbackTraffic: true, // the policy decides, not the stack
		})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	fail := func(what string, err tcpip.Error) (*stack.Stack, error) {
		st.Destroy()
		return nil, fault.New(fault.Internal, "%s of the user-mode network: %s", what, err)
	}
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	recovery := tcpip.TCPRecovery(0) // SACK only: RACK's timers cost throughput and find nothing on an ordered wire
	wait, fin, syns := tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPLingerTimeoutOption(finWait), tcpip.TCPSynRetriesOption(synRetries)
	least, most, tries := tcpip.TCPMinRTOOption(minRTO), tcpip.TCPMaxRTOOption(maxRTO), tcpip.TCPMaxRetriesOption(retries)
	congestion := tcpip.CongestionControlOption("cubic")
	for _, opt := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &recovery, &wait, &fin, &syns, &least, &most, &tries, &congestion,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: minWindow, Default: defaultWindow, Max: maxWindow},
		&tcpip.TCPSendBufferSizeRangeOption{Min: minWindow, Default: defaultWindow, Max: maxWindow},
	} {
		if err := st.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fail(fmt.Sprintf("option %T", opt), err)
		}
	}
	if err := st.CreateNIC(nicID, nic{l}); err != nil {
		return fail("interface", err)
	}
	addr := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: tcpip.AddrFrom4(cfg.Gateway.As4()), PrefixLen: cfg.Guest.Bits(),
	}}
	if err := st.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
		return fail("address", err)
	}
	if err := st.SetPromiscuousMode(nicID, true); err != nil {
		return fail("promiscuous mode", err)
	}
	if err := st.SetSpoofing(nicID, true); err != nil {
		return fail("spoofing", err)
	}
	st.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	return st, nil
}

// serve connects the handlers. They live until the context ends.
func (s *session) serve(ctx context.Context) {
	s.link.onEcho = s.flows.ping(ctx)
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, s.acceptTCP(ctx))
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.acceptUDP(ctx))
}

// spawn runs f as part of the session, unless that is closing.
func (s *session) spawn(f func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.work.Done()
		f()
	}()
	return true
}

// enter counts one more goroutine; the caller ends it with work.Done.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.work.Add(1)
	return true
}

// close ends everything and waits for it. The context of serve has ended before.
func (s *session) close() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.flows.close()
	done := make(chan struct{})
	go func() {
		s.work.Wait()
		close(done)
	}()
	// Whoever is blocked on an endpoint wakes when that is aborted. An endpoint may be registered a moment after this
	// looked, by a handshake that was about to begin, so that once is not enough.
	for waiting := true; waiting; {
		for _, e := range s.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-done:
			waiting = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	s.stack.Destroy()
}

// peerGone reports whether a write failed because the reader has left.
func peerGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
