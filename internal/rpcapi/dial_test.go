//go:build fakevmm

package rpcapi_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
)

// listen serves connections of what the fake guests see: the host's own loopback.
func (b *bed) listen(serve func(*net.TCPConn)) string {
	b.Helper()
	l, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close() //nolint:errcheck // a test's
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

func TestDial(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	echo := b.listen(func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // to the half-close
		_, _ = c.Write(bytes.ToUpper(all))
	})
	conn, err := b.api.Dial(t.Context(), "a", "tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's
	sent := strings.Repeat("abc", 1<<20)
	go func() {
		_, _ = io.WriteString(conn, sent)
		_ = conn.CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || string(got) != strings.ToUpper(sent) {
		t.Errorf("%d bytes of %d came back, %v", len(got), len(sent), err)
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	b.create("still", false)
	for name, c := range map[string]struct {
		vm, network, address string
		kind                 fault.Kind
	}{
		"no such VM":  {"none", "tcp", "127.0.0.1:1", fault.NotFound},
		"not running": {"still", "tcp", "127.0.0.1:1", fault.Precondition},
		"nobody":      {"a", "tcp", "127.0.0.1:1", fault.Unavailable},
		"network":     {"a", "ip", "127.0.0.1", fault.Invalid},
		"address":     {"a", "tcp", "127.0.0.1", fault.Invalid},
	} {
		conn, err := b.api.Dial(t.Context(), c.vm, c.network, c.address)
		if !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, kind %s", name, err, fault.KindOf(err))
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.api.Dial(ctx, "a", "tcp", "127.0.0.1:1"); !fault.Is(err, fault.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	reset := b.listen(func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	conn, err := b.api.Dial(t.Context(), "a", "tcp", reset)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !fault.Is(err, fault.Unavailable) {
		t.Errorf("reset: %v", err)
	}
}

// TestDialGoesWithItsClient wants the guest's peer to see that the client is gone, whatever it was doing, and Close to free
// whoever reads and writes.
func TestDialGoesWithItsClient(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	gone := make(chan struct{}, 1)
	silent := b.listen(func(c *net.TCPConn) {
		time.Sleep(50 * time.Millisecond) // the pipes fill meanwhile, or not: either is right
		_, _ = io.Copy(io.Discard, c)
		gone <- struct{}{}
	})
	conn, err := b.api.Dial(t.Context(), "a", "tcp", silent)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{}, 2)
	go func() { _, _ = io.ReadAll(conn); ended <- struct{}{} }()
	go func() {
		for {
			if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
				ended <- struct{}{}
				return
			}
		}
	}()
	_ = conn.Close()
	for _, ch := range []chan struct{}{ended, ended, gone} {
		select {
		case <-ch:
		case <-time.After(30 * time.Second):
			t.Fatal("something goes on")
		}
	}
}

// TestSlowPeersHoldUpNoOther fills connections whose peers take nothing, all of one client.
func TestSlowPeersHoldUpNoOther(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	silent := b.listen(func(*net.TCPConn) { <-end })
	for range 8 {
		conn, err := b.api.Dial(t.Context(), "a", "tcp", silent)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		wrote := make(chan struct{}, 1)
		go func() {
			for {
				if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
					return
				}
				select {
				case wrote <- struct{}{}:
				default:
				}
			}
		}()
		for stuck := false; !stuck; {
			select {
			case <-wrote:
			case <-time.After(200 * time.Millisecond): // or just slow: then the test is weaker, not wrong
				stuck = true
			}
		}
	}
	echo := b.listen(func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conn, err := b.api.Dial(ctx, "a", "tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close() //nolint:errcheck // a test's
	go func() { _, _ = io.WriteString(conn, "hello") }()
	if got, err := io.ReadAll(io.LimitReader(conn, 5)); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}
