package usernet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"banger/internal/fault"
)

// wire is a network whose guest is the test itself, frame by frame.
type wire struct {
	t    testing.TB
	net  *Network
	conn net.Conn
	in   *bufio.Reader
	ran  chan error
	stop context.CancelFunc
}

func newWire(t testing.TB, cfg Config) *wire {
	t.Helper()
	cfg.Log = quietLog()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := streamPair(t)
	ctx, stop := context.WithCancel(context.Background())
	w := &wire{t: t, net: n, conn: theirs, in: bufio.NewReader(theirs), ran: make(chan error, 1), stop: stop}
	go func() { w.ran <- n.Run(ctx, ours) }()
	t.Cleanup(func() {
		stop()
		_ = theirs.Close()
	})
	return w
}

func (w *wire) send(frame []byte) {
	w.t.Helper()
	_ = w.conn.SetDeadline(time.Now().Add(time.Minute))
	if err := writeFrame(w.conn, frame); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) next() []byte {
	w.t.Helper()
	_ = w.conn.SetDeadline(time.Now().Add(time.Minute))
	frame, err := readFrame(w.in)
	if err != nil {
		w.t.Fatal(err)
	}
	return frame
}

var (
	testGuestMAC   = []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	testGatewayMAC = []byte{0x52, 0x55, 0x0a, 0, 2, 2}
)

func ethernetFrame(proto uint16, payload []byte) []byte {
	f := append(append([]byte{}, testGatewayMAC...), testGuestMAC...)
	return append(binary.BigEndian.AppendUint16(f, proto), payload...)
}

// ipv4Packet returns a frame with a packet in it.
func ipv4Packet(proto tcpip.TransportProtocolNumber, src, dst string, payload []byte) []byte {
	b := make([]byte, ipv4Size)
	putIPv4(b, proto, netip.MustParseAddr(src), netip.MustParseAddr(dst), 1, len(payload), 0, false)
	return ethernetFrame(0x0800, append(b, payload...))
}

func udpPacket(src, dst uint16, payload string) []byte {
	b := make([]byte, udpSize+len(payload))
	header.UDP(b).Encode(&header.UDPFields{SrcPort: src, DstPort: dst, Length: uint16(len(b))})
	copy(b[udpSize:], payload)
	return b
}

func tcpSYN(src, dst netip.AddrPort) []byte {
	b := make([]byte, header.TCPMinimumSize)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1000, DataOffset: header.TCPMinimumSize,
		Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom4(src.Addr().As4()), tcpip.AddrFrom4(dst.Addr().As4()), uint16(len(b)))
	h.SetChecksum(^h.CalculateChecksum(sum))
	return ipv4Packet(header.TCPProtocolNumber, src.Addr().String(), dst.Addr().String(), b)
}

func arpRequest(sender, target string) []byte {
	b := make(header.ARP, header.ARPSize)
	b.SetIPv4OverEthernet()
	b.SetOp(header.ARPRequest)
	copy(b.HardwareAddressSender(), testGuestMAC)
	copy(b.ProtocolAddressSender(), netip.MustParseAddr(sender).AsSlice())
	copy(b.ProtocolAddressTarget(), netip.MustParseAddr(target).AsSlice())
	return ethernetFrame(0x0806, b)
}

func TestARP(t *testing.T) {
	t.Parallel()
	w := newWire(t, Config{})
	w.send(arpRequest("10.0.2.15", "10.0.2.99")) // no such host: no answer
	w.send(arpRequest("10.0.2.15", "10.0.2.2"))
	got := w.next()
	if !bytes.Equal(got[:6], testGuestMAC) || !bytes.Equal(got[6:12], testGatewayMAC) {
		t.Errorf("addresses % x", got[:12])
	}
	reply := header.ARP(got[etherSize:])
	if !reply.IsValid() || reply.Op() != header.ARPReply || !bytes.Equal(reply.HardwareAddressSender(), testGatewayMAC) ||
		!bytes.Equal(reply.ProtocolAddressSender(), []byte{10, 0, 2, 2}) || !bytes.Equal(reply.ProtocolAddressTarget(), []byte{10, 0, 2, 15}) {
		t.Errorf("reply % x", reply)
	}
}

// Frames that the network cannot carry are dropped, and the next good one is served.
func TestMalformedFrames(t *testing.T) {
	t.Parallel()
	edit := func(f func(b []byte)) []byte {
		b := ipv4Packet(17, "10.0.2.15", "10.0.2.2", udpPacket(1, 7, "payload"))
		f(b)
		return b
	}
	udpLength := etherSize + ipv4Size + 4
	w := newWire(t, Config{})
	bad := [][]byte{
		nil,
		{1},
		make([]byte, 13), ethernetFrame(0x0800, nil), ethernetFrame(0x0806, []byte{0}),
		edit(func(b []byte) { b[etherSize] = 0x65 }),                                 // IP version 6
		edit(func(b []byte) { b[etherSize] = 0x4f }),                                 // options that are not there
		edit(func(b []byte) { b[etherSize] = 0x41 }),                                 // a header of four bytes
		edit(func(b []byte) { binary.BigEndian.PutUint16(b[etherSize+2:], 65535) }),  // longer than the frame
		edit(func(b []byte) { binary.BigEndian.PutUint16(b[etherSize+2:], 19) }),     // shorter than its header
		edit(func(b []byte) { b[etherSize+15] = 99 }),                                // not the guest's address
		edit(func(b []byte) { b[etherSize+16] = 224 }),                               // multicast
		edit(func(b []byte) { copy(b[etherSize+16:], []byte{255, 255, 255, 255}) }),  // broadcast
		edit(func(b []byte) { copy(b[etherSize+16:], []byte{10, 0, 2, 15}) }),        // to itself
		edit(func(b []byte) { binary.BigEndian.PutUint16(b[udpLength:], 3) }),        // UDP length below its header
		edit(func(b []byte) { binary.BigEndian.PutUint16(b[udpLength:], 60000) }),    // ... and beyond the packet
		edit(func(b []byte) { binary.BigEndian.PutUint16(b[etherSize+6:], 0x2000) }), // a first fragment, no second
		edit(func(b []byte) { binary.BigEndian.PutUint16(b[etherSize+6:], 0x1fff) }), // a last fragment beyond 64 KiB
		make([]byte, 1514), make([]byte, 1515), make([]byte, maxFrame),
	}
	for _, f := range bad {
		w.send(f)
	}
	w.send(arpRequest("10.0.2.15", "10.0.2.2"))
	if got := w.next(); binary.BigEndian.Uint16(got[12:]) != 0x0806 {
		t.Errorf("got % x", got)
	}
	if s := w.net.Stats(); s.Malformed < 12 || s.FramesIn != uint64(len(bad)+1) {
		t.Errorf("stats: %+v", s)
	}
}

func TestRunEnds(t *testing.T) {
	t.Parallel()
	t.Run("context", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, Config{})
		w.send(arpRequest("10.0.2.15", "10.0.2.2"))
		w.next()
		w.stop()
		if err := <-w.ran; err != nil {
			t.Error(err)
		}
		if _, err := readFrame(w.conn); !errors.Is(err, io.EOF) {
			t.Errorf("the connection is still open: %v", err)
		}
	})
	t.Run("peer closes", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, Config{})
		_ = w.conn.Close()
		if err := <-w.ran; err != nil {
			t.Error(err)
		}
	})
	t.Run("in the middle of a frame", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, Config{})
		_, _ = w.conn.Write([]byte{0, 0, 0, 60, 1, 2, 3})
		_ = w.conn.Close()
		if err := <-w.ran; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	})
	t.Run("absurd frame", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, Config{})
		_, _ = w.conn.Write([]byte{0xff, 0xff, 0xff, 0xff})
		if err := <-w.ran; !fault.Is(err, fault.Corrupt) {
			t.Error(err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		t.Parallel()
		w := newWire(t, Config{})
		w.send(arpRequest("10.0.2.15", "10.0.2.2"))
		w.next()
		ours, _ := streamPair(t)
		if err := w.net.Run(t.Context(), ours); !fault.Is(err, fault.Busy) {
			t.Error(err)
		}
		w.stop()
		if err := <-w.ran; err != nil {
			t.Error(err)
		}
		// One after the other is fine.
		ours, theirs := streamPair(t)
		ran := make(chan error, 1)
		go func() { ran <- w.net.Run(t.Context(), ours) }()
		_ = writeFrame(theirs, arpRequest("10.0.2.15", "10.0.2.2"))
		if _, err := readFrame(theirs); err != nil {
			t.Error(err)
		}
		_ = theirs.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// A guest that does not read costs a bounded amount of memory, and the network still ends.
func TestGuestDoesNotRead(t *testing.T) {
	t.Parallel()
	w := newWire(t, Config{})
	big := make([]byte, 1400)
	big[0] = 8 // echo request
	header.ICMPv4(big).SetChecksum(^checksum.Checksum(big, 0))
	frame := ipv4Packet(1, "10.0.2.15", "10.0.2.2", big)
	for i := 0; w.net.Stats().QueueDrops < 100; i++ {
		if i > 100_000 {
			t.Fatal("nothing is ever dropped")
		}
		w.send(frame)
	}
	s, err := w.net.session()
	if err != nil {
		t.Fatal(err)
	}
	s.link.mu.Lock()
	queued := len(s.link.out)
	s.link.mu.Unlock()
	if queued > maxQueued {
		t.Errorf("%d bytes are queued", queued)
	}
	w.stop()
	if err := <-w.ran; err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*Config){
		"no logger":           func(c *Config) { c.Log = nil },
		"IPv6 guest":          func(c *Config) { c.Guest = netip.MustParsePrefix("fd00::2/64") },
		"gateway elsewhere":   func(c *Config) { c.Gateway = netip.MustParseAddr("10.0.3.2") },
		"gateway = guest":     func(c *Config) { c.Gateway = netip.MustParseAddr("10.0.2.15") },
		"short MAC":           func(c *Config) { c.MAC = net.HardwareAddr{1} },
		"short guest MAC":     func(c *Config) { c.GuestMAC = net.HardwareAddr{1} },
		"MTU too small":       func(c *Config) { c.MTU = 100 },
		"MTU too large":       func(c *Config) { c.MTU = 70000 },
		"negative limit":      func(c *Config) { c.MaxConns = -1 },
		"unknown policy mode": func(c *Config) { c.Policy.Mode = "ajar" },
	} {
		cfg := Config{Log: quietLog()}
		edit(&cfg)
		if _, err := New(cfg); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	var q throttle
	now := time.Now()
	if n, ok := q.pass(now); !ok || n != 0 {
		t.Errorf("first: %d, %v", n, ok)
	}
	for range 5 {
		if _, ok := q.pass(now.Add(time.Millisecond)); ok {
			t.Error("passed too early")
		}
	}
	if n, ok := q.pass(now.Add(2 * time.Second)); !ok || n != 5 {
		t.Errorf("later: %d, %v", n, ok)
	}
}

// FuzzFrame feeds frames to a whole network, policy closed so that nothing leaves it.
func FuzzFrame(f *testing.F) {
	gw := netip.MustParseAddrPort("10.0.2.2:53")
	me := netip.MustParseAddrPort("10.0.2.15:4000")
	f.Add(tcpSYN(me, gw))
	f.Add(tcpSYN(me, netip.MustParseAddrPort("8.8.8.8:80")))
	f.Add(arpRequest("10.0.2.15", "10.0.2.2"))
	f.Add(ipv4Packet(17, "10.0.2.15", "10.0.2.2", udpPacket(1, 53, "0123456789abcdef")))
	f.Add(ipv4Packet(17, "10.0.2.15", "9.9.9.9", udpPacket(1, 53, "x")))
	f.Add(ipv4Packet(1, "10.0.2.15", "10.0.2.2", []byte{8, 0, 0, 0, 0, 0, 0, 0}))
	n, err := New(Config{Log: quietLog(), Policy: Policy{Mode: Closed}})
	if err != nil {
		f.Fatal(err)
	}
	s, err := newSession(n)
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.serve(ctx)
	f.Cleanup(func() {
		cancel()
		s.close()
	})
	f.Fuzz(func(_ *testing.T, frame []byte) {
		s.link.receive(frame)
		s.link.mu.Lock()
		s.link.out = s.link.out[:0]
		s.link.mu.Unlock()
	})
}

// FuzzStream feeds bytes to the reader of frames.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 2})
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0x11, 0})
	f.Add([]byte{0xff, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var stats counters
		n, err := New(Config{Log: quietLog()})
		if err != nil {
			t.Fatal(err)
		}
		l := newLink(&n.cfg, &stats)
		l.onEcho = func(netip.Addr, uint16, []byte) {}
		if err := l.read(bytes.NewReader(b)); err == nil {
			t.Error("the end of the stream is not reported")
		}
	})
}
