package usernet

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestUDPEcho(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	c := h.dialUDP(t, serveUDP(t))
	for _, size := range []int{1, 0, 100, 1472, 1473, 9000, 60000} { // fragments from 1473 on
		msg := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 65536)
		n, err := c.Read(b)
		if err != nil || !bytes.Equal(b[:n], msg) {
			t.Fatalf("%d bytes: got %d, %v", size, n, err)
		}
	}
	if s := h.net.Stats(); s.Flows != 1 || s.OpenFlows != 1 {
		t.Errorf("stats: %+v", s)
	}
}

func TestUDPRefused(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	for name, addr := range map[string]string{
		"nothing listens":       closedPort(t, "udp4"),
		"a port of the gateway": gatewayAddr + ":99",
	} {
		c := h.dialUDP(t, addr)
		_, _ = c.Write([]byte("x"))
		var err error
		for range 20 { // netstack reports an ICMP error to the next read, not to one that waits
			_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err = c.Read(make([]byte, 10)); strings.Contains(err.Error(), "refused") {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// What the guest gets for a datagram that the policy denies is ICMP type 3, code 13, about that datagram.
func TestUDPProhibited(t *testing.T) {
	t.Parallel()
	w := newWire(t, Config{})
	w.send(ipv4Packet(17, "10.0.2.15", "169.254.169.254", udpPacket(1234, 80, "x")))
	got := w.next()
	msg := got[etherSize+ipv4Size:]
	if msg[0] != 3 || msg[1] != 13 {
		t.Fatalf("ICMP type %d, code %d", msg[0], msg[1])
	}
	if dst := netip.AddrFrom4([4]byte(msg[8+16 : 8+20])); dst.String() != "169.254.169.254" {
		t.Errorf("about a packet to %s", dst)
	}
	if port := msg[8+20+1]; port != 1234&0xff {
		t.Errorf("quotes port %d", port)
	}
}

func TestUDPIdle(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	s, err := h.net.session()
	if err != nil {
		t.Fatal(err)
	}
	s.flows.mu.Lock()
	s.flows.idle = 200 * time.Millisecond
	s.flows.mu.Unlock()
	addr := serveUDP(t)
	c := h.dialUDP(t, addr)
	for range 3 { // traffic keeps the flow
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if got := h.net.Stats().Flows; got != 1 {
		t.Errorf("%d flows", got)
	}
	eventually(t, "the flow ends", func() bool { return h.net.Stats().OpenFlows == 0 })
	_, _ = c.Write([]byte("again"))
	if _, err := c.Read(make([]byte, 10)); err != nil {
		t.Errorf("after the flow has ended: %v", err)
	}
}

// Beyond the limit the least recently used flow makes room.
func TestUDPLimit(t *testing.T) {
	t.Parallel()
	const limit = 8
	h := start(t, Config{MaxFlows: limit, Policy: Policy{Allow: loopbackGrant}})
	addr := serveUDP(t)
	for i := range 5 * limit {
		c := h.dialUDP(t, addr)
		_, _ = c.Write([]byte{byte(i)})
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
	}
	s := h.net.Stats()
	if s.Flows != 5*limit || s.OpenFlows != limit || s.Limited != 4*limit {
		t.Errorf("stats: %+v", s)
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	got, err := h.ping(t, gatewayAddr, 5*time.Second)
	if err != nil || !bytes.HasSuffix(got, []byte("ping payload")) || got[0] != 0 {
		t.Errorf("gateway: got %q, %v", got, err)
	}
	if _, err := h.ping(t, "192.168.7.7", 200*time.Millisecond); err == nil {
		t.Error("a denied address answers")
	}
	if h.net.Stats().Denied == 0 {
		t.Error("the denied ping is not counted")
	}
	t.Run("outside", func(t *testing.T) {
		if c, err := openPing(netip.MustParseAddr("127.0.0.1")); err != nil {
			t.Skipf("this host allows no ping sockets: %v", err)
		} else {
			_ = c.Close()
		}
		got, err := h.ping(t, "127.0.0.1", 5*time.Second)
		if err != nil || !bytes.HasSuffix(got, []byte("ping payload")) || got[0] != 0 {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestBroadcastSocket(t *testing.T) {
	t.Parallel()
	if c, err := openFlow(t.Context(), flowKey{to: netip.MustParseAddrPort("255.255.255.255:9")}, func() bool { return true }); err == nil {
		_ = c.Close()
		t.Error("a flow may broadcast")
	}
	control, err := net.Dial("udp4", "255.255.255.255:9")
	if err != nil {
		t.Skipf("this host has no route to broadcast to: %v", err)
	}
	_ = control.Close()
}
