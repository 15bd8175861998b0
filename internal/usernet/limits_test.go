package usernet

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// These tests count goroutines and descriptors of the whole process and must not run beside others: no t.Parallel.

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("cannot count descriptors: %v", err)
	}
	return len(entries)
}

// settled waits until goroutines and descriptors are back where they were.
func settled(t testing.TB, goroutines, fds int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		g, d := runtime.NumGoroutine(), descriptors(t)
		if g <= goroutines && d <= fds {
			return
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines (%d before), %d descriptors (%d before)\n%s", g, goroutines, d, fds, buf[:runtime.Stack(buf, true)])
		}
	}
}

// Everything that a network opened has ended when Run returns, whatever was going on.
func TestNoLeaks(t *testing.T) {
	addr, udp := serveTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }), serveUDP(t)
	time.Sleep(50 * time.Millisecond)
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	n, err := New(Config{Log: quietLog(), Policy: Policy{Allow: loopbackGrant}, Resolvers: []netip.AddrPort{netip.MustParseAddrPort(udp)}})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		h := run(t, n)
		l := h.listenTCP(t, 80)
		for range 5 {
			c, err := h.dialTCP(t, addr) // stays open
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(make([]byte, 1000))
			u := h.dialUDP(t, udp)
			_, _ = u.Write([]byte("x"))
			_, _ = u.Read(make([]byte, 10))
			if _, err := n.Dial(t.Context(), 80); err != nil {
				t.Fatal(err)
			}
			_, _ = l.Accept()
		}
		resolving := h.dialUDP(t, gatewayAddr+":53") // never answered: the server only echoes
		q := query("one.test.", 1)
		b, _ := q.Pack()
		_, _ = resolving.Write(b)
		eventually(t, "all are open", func() bool { return n.Stats().OpenFlows == 5 && n.Stats().OpenConns == 5 })
		began := time.Now()
		h.end(t)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Run took %v to end", took)
		}
		if s := n.Stats(); s.OpenConns != 0 || s.OpenFlows != 0 {
			t.Errorf("stats: %+v", s)
		}
	}
	settled(t, goroutines, fds)
}

// A guest that sends SYNs and never answers holds at most maxDialing requests, and what they need.
func TestSYNFlood(t *testing.T) {
	addr := netip.MustParseAddrPort(serveTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }))
	time.Sleep(50 * time.Millisecond)
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	w := newWire(t, Config{Policy: Policy{Allow: loopbackGrant}})
	go func() { _, _ = io.Copy(io.Discard, w.conn) }()
	maxG, maxD := 0, 0
	const syns = 5000
	for i := range syns {
		w.send(tcpSYN(netip.AddrPortFrom(netip.MustParseAddr(guestAddr), uint16(1024+i)), addr))
		if i%100 == 0 {
			maxG, maxD = max(maxG, runtime.NumGoroutine()-goroutines), max(maxD, descriptors(t)-fds)
		}
	}
	eventually(t, "the limit", func() bool { return w.net.Stats().FramesIn == syns })
	s := w.net.Stats()
	if s.Limited == 0 || s.OpenConns > maxDialing {
		t.Errorf("stats: %+v", s)
	}
	// The server in this process has a goroutine and a descriptor for each connection too.
	if maxG > 3*maxDialing || maxD > 2*maxDialing+64 {
		t.Errorf("%d goroutines, %d descriptors", maxG, maxD)
	}
	w.stop()
	if err := <-w.ran; err != nil {
		t.Error(err)
	}
	_ = w.conn.Close()
	settled(t, goroutines, fds)
}

// A guest that sprays datagrams holds at most MaxFlows flows.
func TestUDPSpray(t *testing.T) {
	addr := netip.MustParseAddrPort(serveUDP(t))
	time.Sleep(50 * time.Millisecond)
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	w := newWire(t, Config{Policy: Policy{Allow: loopbackGrant}})
	go func() { _, _ = io.Copy(io.Discard, w.conn) }()
	maxD := 0
	const datagrams = 5000
	for i := range datagrams {
		w.send(ipv4Packet(17, guestAddr, addr.Addr().String(), udpPacket(uint16(1024+i), addr.Port(), "x")))
		if i%100 == 0 {
			maxD = max(maxD, descriptors(t)-fds)
		}
	}
	eventually(t, "all have arrived", func() bool { return w.net.Stats().Flows == datagrams })
	if s := w.net.Stats(); s.OpenFlows > DefaultMaxFlows {
		t.Errorf("stats: %+v", s)
	}
	if maxD > DefaultMaxFlows+64 {
		t.Errorf("%d descriptors", maxD)
	}
	w.stop()
	if err := <-w.ran; err != nil {
		t.Error(err)
	}
	_ = w.conn.Close()
	settled(t, goroutines, fds)
}

// Beyond MaxConns connections are reset; a closed one makes room.
func TestMaxConns(t *testing.T) {
	const limit = 4
	h := start(t, Config{MaxConns: limit, Policy: Policy{Allow: loopbackGrant}})
	addr := serveTCP(t, echoTCP)
	var open []net.Conn
	for range limit {
		open = append(open, h.mustDialTCP(t, addr))
	}
	if _, err := h.dialTCP(t, addr); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("one more: %v", err)
	}
	_ = open[0].Close()
	eventually(t, "there is room again", func() bool { return h.net.Stats().OpenConns < limit })
	h.mustDialTCP(t, addr)
}

// More fragments than a guest may have waiting for their rest do not pile up.
func TestFragmentFlood(t *testing.T) {
	w := newWire(t, Config{})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	frame := ipv4Packet(17, guestAddr, "10.9.9.9", make([]byte, 1400))
	ip := header.IPv4(frame[etherSize:])
	for i := range 20_000 {
		ip.SetID(uint16(i))
		ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, uint16(8*(i%100)))
		w.send(frame)
	}
	eventually(t, "all have arrived", func() bool { return w.net.Stats().FramesIn == 20_000 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// What an idle network costs; see also BenchmarkIdle.
func TestIdleGoroutines(t *testing.T) {
	time.Sleep(50 * time.Millisecond)
	goroutines := runtime.NumGoroutine()
	w := newWire(t, Config{})
	w.send(arpRequest("10.0.2.15", "10.0.2.2"))
	w.next()
	if got, most := runtime.NumGoroutine()-goroutines, 3+runtime.GOMAXPROCS(0); got > most {
		t.Errorf("%d goroutines, at most %d expected", got, most)
	}
}

func BenchmarkIdle(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range b.N {
		w := newWire(b, Config{})
		w.send(arpRequest("10.0.2.15", "10.0.2.2"))
		w.next()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(b.N), "heap-B/net")
	b.ReportMetric(float64(after.StackInuse-before.StackInuse)/float64(b.N), "stack-B/net")
}

// BenchmarkTCP moves bytes between a guest's stack in this process and a server on loopback, so that it pays for both
// stacks.
func BenchmarkTCP(b *testing.B) {
	for _, mtu := range []int{1500, 65520} {
		for _, dir := range []string{"guest-to-host", "host-to-guest"} {
			b.Run(fmt.Sprintf("%s/mtu=%d", dir, mtu), func(b *testing.B) { benchmarkTCP(b, mtu, dir == "guest-to-host") })
		}
	}
}

// cpuTime is what this process has used, both stacks and the server included: it varies less than the clock.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkTCP(b *testing.B, mtu int, out bool) {
	h := start(b, Config{MTU: mtu, Policy: Policy{Allow: loopbackGrant}})
	const block = 1 << 20
	b.SetBytes(block)
	total := int64(b.N) * block
	addr := serveTCP(b, func(c *net.TCPConn) {
		if out {
			_, _ = io.Copy(io.Discard, c)
			_, _ = c.Write([]byte{1})
			return
		}
		buf := make([]byte, 64<<10)
		for sent := int64(0); sent < total; sent += int64(len(buf)) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	c, err := h.dialTCP(b, addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's end
	b.ReportAllocs()
	b.ResetTimer()
	began := cpuTime(b)
	defer func() { b.ReportMetric(float64((cpuTime(b)-began).Microseconds())/float64(b.N), "cpu-us/MiB") }()
	if !out {
		if n, err := io.Copy(io.Discard, c); n != total || err != nil {
			b.Fatalf("%d bytes, %v", n, err)
		}
		return
	}
	buf := make([]byte, 64<<10)
	for sent := int64(0); sent < total; sent += int64(len(buf)) {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	_ = c.CloseWrite()
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		b.Fatal(err)
	}
}
