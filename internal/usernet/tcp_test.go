package usernet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
)

func TestTCPEcho(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	c := h.mustDialTCP(t, serveTCP(t, echoTCP))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	_ = c.Close()
	eventually(t, "the slot is free", func() bool { return h.net.Stats().OpenConns == 0 })
	if s := h.net.Stats(); s.Conns != 1 || s.Denied != 0 || s.BytesIn == 0 || s.BytesOut == 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A half-closed connection still carries bytes the other way, in both directions.
func TestTCPHalfClose(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	t.Run("guest first", func(t *testing.T) {
		addr := serveTCP(t, func(c *net.TCPConn) {
			b, _ := io.ReadAll(c)
			_, _ = fmt.Fprintf(c, "%d bytes", len(b))
		})
		c := h.mustDialTCP(t, addr)
		_, _ = c.Write(make([]byte, 100_000))
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "100000 bytes" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	})
	t.Run("host first", func(t *testing.T) {
		got := make(chan int, 1)
		addr := serveTCP(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("bye"))
			_ = c.CloseWrite()
			b, _ := io.ReadAll(c)
			got <- len(b)
		})
		c := h.mustDialTCP(t, addr)
		if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
			t.Fatalf("got %q, %v", b, err)
		}
		_, _ = c.Write(make([]byte, 100_000))
		_ = c.Close()
		if n := <-got; n != 100_000 {
			t.Fatalf("host got %d bytes", n)
		}
	})
}

func TestTCPRefused(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	for name, addr := range map[string]string{
		"nothing listens":       closedPort(t, "tcp4"),
		"policy":                "192.168.7.7:80",
		"a port of the gateway": gatewayAddr + ":22",
	} {
		began := time.Now()
		_, err := h.dialTCP(t, addr)
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: got %v, want a refused connection", name, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: refused only after %v", name, took)
		}
	}
}

func TestTCPReset(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Policy: Policy{Allow: loopbackGrant}})
	t.Run("by the host", func(t *testing.T) {
		c := h.mustDialTCP(t, serveTCP(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		}))
		_, _ = c.Write([]byte("x"))
		_, err := io.ReadAll(c)
		if err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("guest sees %v, want a reset", err)
		}
	})
	t.Run("by the guest", func(t *testing.T) {
		seen := make(chan error, 1)
		c := h.mustDialTCP(t, serveTCP(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("unread"))
			_, err := io.ReadAll(c)
			seen <- err
		}))
		time.Sleep(50 * time.Millisecond) // let the bytes arrive: closing with unread bytes is a reset
		_ = c.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("host sees %v, want a reset", err)
		}
	})
}

func TestTCPIntegrity(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{576, 1500, 65520} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			t.Parallel()
			h := start(t, Config{MTU: mtu, Policy: Policy{Allow: loopbackGrant}})
			size := 4 << 20
			if mtu < 1500 {
				size = 1 << 20
			}
			data := make([]byte, size)
			src := rand.NewChaCha8([32]byte{1})
			_, _ = src.Read(data)
			c := h.mustDialTCP(t, serveTCP(t, echoTCP))
			go func() {
				_, _ = io.Copy(c, bytes.NewReader(data))
				_ = c.CloseWrite()
			}()
			sum := sha256.New()
			if n, err := io.Copy(sum, c); n != int64(size) || err != nil {
				t.Fatalf("got %d bytes, %v", n, err)
			}
			if [32]byte(sum.Sum(nil)) != sha256.Sum256(data) {
				t.Fatal("the bytes differ")
			}
		})
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	l := h.listenTCP(t, 80)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	c, err := h.net.Dial(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("in"))
	if cw, ok := c.(interface{ CloseWrite() error }); !ok || cw.CloseWrite() != nil {
		t.Fatal("no CloseWrite")
	}
	if got, err := io.ReadAll(c); string(got) != "in" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	if got := c.RemoteAddr().String(); got != guestAddr+":80" {
		t.Errorf("remote address %s", got)
	}
	_ = c.Close()

	_, err = h.net.Dial(t.Context(), 81)
	if !fault.Is(err, fault.Unavailable) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = h.net.Dial(ctx, 80); !fault.Is(err, fault.Canceled) && err != nil {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDialNotRunning(t *testing.T) {
	t.Parallel()
	n, err := New(Config{Log: quietLog()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Dial(t.Context(), 80); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
}

func TestForward(t *testing.T) {
	t.Parallel()
	h := start(t, Config{})
	l := h.listenTCP(t, 8080)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				b, _ := io.ReadAll(c)
				_, _ = c.Write(bytes.ToUpper(b))
				_ = c.Close()
			}()
		}
	}()
	tcpListener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unixListener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	go func() { ended <- h.net.Forward(ctx, tcpListener, 8080) }()
	go func() { ended <- h.net.Forward(ctx, unixListener, 8080) }()
	go func() { ended <- h.net.Forward(ctx, refusing, 9) }()

	for _, addr := range []net.Addr{tcpListener.Addr(), unixListener.Addr()} {
		c, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("shout"))
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "SHOUT" || err != nil {
			t.Errorf("%s: got %q, %v", addr.Network(), got, err)
		}
		_ = c.Close()
	}
	c, err := net.Dial("tcp4", refusing.Addr().String())
	if err == nil {
		_, err = io.ReadAll(c)
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("refused by the guest: got %v, want a reset", err)
	}

	open, err := net.Dial("tcp4", tcpListener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close() //nolint:errcheck // a test's end
	eventually(t, "the connection is forwarded", func() bool { return h.net.Stats().OpenConns > 0 })
	cancel()
	for range 3 {
		if err := <-ended; err != nil {
			t.Errorf("Forward: %v", err)
		}
	}
	_ = open.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(open); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the open connection was left open")
	}
}

func TestForwardListenerClosed(t *testing.T) {
	t.Parallel()
	n, err := New(Config{Log: quietLog()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- n.Forward(t.Context(), l, 80) }()
	// While the network does not run, connections are reset.
	c, err := net.Dial("tcp4", l.Addr().String())
	if err == nil {
		_, err = io.ReadAll(c)
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("not running: got %v, want a reset", err)
	}
	_ = l.Close()
	if err := <-ended; !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
}
