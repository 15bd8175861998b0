package usernet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

var loopbackGrant = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

const (
	guestAddr   = "10.0.2.15"
	gatewayAddr = "10.0.2.2"
)

// guest is a whole TCP/IP stack at the other end of the stream, with ARP, as a real guest has.
type guest struct {
	stack *stack.Stack
	conn  net.Conn // the guest's end of the stream
	done  chan struct{}
}

// harness is a running network and its guest.
type harness struct {
	*guest
	net  *Network
	ran  chan error
	stop context.CancelFunc
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a network with a guest on it, and ends both with the test.
func start(t testing.TB, cfg Config) *harness {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = quietLog()
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := run(t, n)
	t.Cleanup(func() { h.end(t) })
	return h
}

func run(t testing.TB, n *Network) *harness {
	t.Helper()
	ours, theirs := streamPair(t)
	ctx, stop := context.WithCancel(context.Background())
	h := &harness{net: n, stop: stop, ran: make(chan error, 1)}
	go func() { h.ran <- n.Run(ctx, ours) }()
	h.guest = newGuest(t, theirs, n.cfg.MTU)
	for range 1000 {
		if _, err := n.session(); err == nil {
			return h
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the network does not start")
	return nil
}

func (h *harness) end(t testing.TB) {
	t.Helper()
	h.stop()
	select {
	case err := <-h.ran:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Run does not end")
	}
	h.close()
}

// streamPair returns two ends of a connected Unix stream socket, as between a monitor and its VMM.
func streamPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "stream")
		conns[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

func newGuest(t testing.TB, conn net.Conn, mtu int) *guest {
	t.Helper()
	g := &guest{conn: conn, done: make(chan struct{})}
	g.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocolWithOptions(ipv4.Options{
			AllowExternalLoopbackTraffic: true,
		})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	wire := channel.New(4096, uint32(mtu+header.EthernetMinimumSize), "\x52\x54\x00\x12\x34\x56")
	check := func(err tcpip.Error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	check(g.stack.CreateNIC(1, ethernet.New(wire)))
	check(g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: addr4(guestAddr), PrefixLen: 24},
	}, stack.AddressProperties{}))
	// Loopback addresses are sent to the gateway like others: they stand for the outside in these tests.
	lan := tcpip.AddressWithPrefix{Address: addr4(guestAddr), PrefixLen: 24}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: lan.Subnet(), NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: addr4(gatewayAddr), NIC: 1},
	})
	check2 := g.stack.AddStaticNeighbor
	for i := range 8 { // the loopback addresses have no gateway in netstack's eyes
		check(check2(1, ipv4.ProtocolNumber, addr4(fmt.Sprintf("127.0.0.%d", i+1)), "\x52\x55\x0a\x00\x02\x02"))
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		out := bufio.NewWriterSize(conn, 128<<10)
		for pkt := wire.ReadContext(ctx); pkt != nil; pkt = wire.ReadContext(ctx) {
			for ; pkt != nil; pkt = wire.Read() { // all that is there, in one write
				frame := pkt.ToView()
				pkt.DecRef()
				_ = writeFrame(out, frame.AsSlice())
				frame.Release()
			}
			if out.Flush() != nil {
				return
			}
		}
	}()
	go func() {
		defer close(g.done)
		defer cancel()
		in := bufio.NewReaderSize(conn, 128<<10)
		for {
			frame, err := readFrame(in)
			if err != nil {
				return
			}
			if len(frame) > mtu+header.EthernetMinimumSize {
				t.Errorf("the guest gets a frame of %d bytes", len(frame))
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
			wire.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	}()
	return g
}

func (g *guest) close() {
	_ = g.conn.Close()
	<-g.done
	g.stack.Destroy()
}

func writeFrame(w io.Writer, frame []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func addr4(s string) tcpip.Address { return tcpip.AddrFrom4(netip.MustParseAddr(s).As4()) }

func fullAddr(t testing.TB, s string) tcpip.FullAddress {
	t.Helper()
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(ap.Addr().As4()), Port: ap.Port()}
}

// dialTCP connects from the guest.
func (g *guest) dialTCP(t testing.TB, to string) (*gonet.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return gonet.DialTCPWithBind(ctx, g.stack, tcpip.FullAddress{NIC: 1, Addr: addr4(guestAddr)}, fullAddr(t, to), ipv4.ProtocolNumber)
}

func (g *guest) mustDialTCP(t testing.TB, to string) *gonet.TCPConn {
	t.Helper()
	c, err := g.dialTCP(t, to)
	if err != nil {
		t.Fatalf("guest connects to %s: %v", to, err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// dialUDP opens a connected UDP socket in the guest.
func (g *guest) dialUDP(t testing.TB, to string) *gonet.UDPConn {
	t.Helper()
	remote := fullAddr(t, to)
	local := tcpip.FullAddress{NIC: 1, Addr: addr4(guestAddr)}
	c, err := gonet.DialUDP(g.stack, &local, &remote, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// listenTCP listens in the guest.
func (g *guest) listenTCP(t testing.TB, port uint16) net.Listener {
	t.Helper()
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: 1, Addr: addr4(guestAddr), Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// ping sends an echo request from the guest and waits for the reply.
func (g *guest) ping(t testing.TB, to string, wait time.Duration) ([]byte, error) {
	t.Helper()
	var wq waiter.Queue
	ep, terr := g.stack.NewEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		t.Fatal(terr)
	}
	c := gonet.NewUDPConn(&wq, ep)
	defer c.Close() //nolint:errcheck // a test's end
	_ = c.SetDeadline(time.Now().Add(wait))
	if terr := ep.Connect(fullAddr(t, to+":0")); terr != nil {
		return nil, errors.New(terr.String())
	}
	msg := append([]byte{8, 0, 0, 0, 0, 0, 0, 1}, "ping payload"...)
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	b := make([]byte, 2000)
	n, err := c.Read(b)
	return b[:n], err
}

// serveTCP runs a TCP server on the host's loopback interface.
func serveTCP(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // a test's end
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

func echoTCP(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// serveUDP runs a UDP echo server on the host's loopback interface.
func serveUDP(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return c.LocalAddr().String()
}

// closedPort returns an address of the host on which nothing listens.
func closedPort(t testing.TB, network string) string {
	t.Helper()
	if network == "udp4" {
		c, err := net.ListenPacket(network, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // nothing was sent
		return c.LocalAddr().String()
	}
	l, err := net.Listen(network, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nobody has connected
	return l.Addr().String()
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}
