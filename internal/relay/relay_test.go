package relay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/relay"
)

// patience bounds what is waited for; a busy machine needs some.
const patience = 30 * time.Second

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func listenPacket(t *testing.T) net.PacketConn {
	t.Helper()
	pc, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}

// server answers each connection by serve and closes it then.
func server(t *testing.T, serve func(*net.TCPConn)) relay.Dial {
	t.Helper()
	l := listen(t)
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
	return dialer("tcp", l.Addr())
}

func dialer(network string, addr net.Addr) relay.Dial {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr.String())
	}
}

// run runs a relay; stop ends it and waits for that.
func run(t *testing.T, work func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- work(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("it goes on")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func streams(t *testing.T, dial relay.Dial) (addr string, stop func()) {
	t.Helper()
	l := listen(t)
	return l.Addr().String(), run(t, func(ctx context.Context) error {
		return relay.Streams(ctx, l, dial, slog.New(slog.DiscardHandler))
	})
}

func connect(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	addr, _ := streams(t, server(t, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.ToUpper(all))
	}))
	var all sync.WaitGroup
	for range 50 {
		conn := connect(t, addr)
		all.Go(func() {
			sent := strings.Repeat("abc", 100_000)
			_, _ = io.WriteString(conn, sent)
			_ = conn.CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || string(got) != strings.ToUpper(sent) {
				t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
			}
		})
	}
	all.Wait()
}

func TestServerEndsFirst(t *testing.T) {
	t.Parallel()
	addr, _ := streams(t, server(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "bye")
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}))
	conn := connect(t, addr)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "bye" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := io.WriteString(conn, "still here"); err != nil {
		t.Errorf("the other direction: %v", err)
	}
}

func TestResets(t *testing.T) {
	t.Parallel()
	for name, dial := range map[string]relay.Dial{
		"nobody there": func(context.Context) (net.Conn, error) { return nil, errors.New("no") },
		"reset": server(t, func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 1))
			_ = c.SetLinger(0)
		}),
	} {
		addr, _ := streams(t, dial)
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			continue // it was reset before it was there
		}
		_, _ = io.WriteString(conn, "x")
		if _, err := io.ReadAll(conn); err == nil {
			t.Errorf("%s: it looks like an end", name)
		}
		_ = conn.Close()
	}
}

// TestSlowReader wants one connection that takes nothing to hold up neither others nor the end.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	addr, stop := streams(t, server(t, func(c *net.TCPConn) {
		b := make([]byte, 1)
		if _, _ = c.Read(b); b[0] == 'p' {
			_, _ = c.Write([]byte("pong"))
			return
		}
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}))
	slow := connect(t, addr)
	_, _ = io.WriteString(slow, "f")
	_, _ = io.ReadFull(slow, make([]byte, 1))
	quick := connect(t, addr)
	_, _ = io.WriteString(quick, "p")
	if got, err := io.ReadAll(quick); err != nil || string(got) != "pong" {
		t.Errorf("%q, %v", got, err)
	}
	stop()
	if _, err := io.Copy(io.Discard, slow); err == nil {
		t.Error("what was cut off looks like an end")
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	addr, _ := streams(t, server(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("x"))
		_, _ = io.Copy(io.Discard, c)
	}))
	var held []*net.TCPConn
	for range relay.MaxConns {
		conn := connect(t, addr)
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	extra := connect(t, addr)
	_ = extra.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := extra.Read(make([]byte, 1)); err == nil {
		t.Error("one more than the limit is served")
	}
	_ = held[0].Close()
	_ = extra.SetReadDeadline(time.Now().Add(patience))
	if _, err := extra.Read(make([]byte, 1)); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

func TestDatagrams(t *testing.T) {
	t.Parallel()
	echo := listenPacket(t)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(bytes.ToUpper(buf[:n]), from)
		}
	}()
	pc := listenPacket(t)
	stop := run(t, func(ctx context.Context) error {
		return relay.Datagrams(ctx, pc, dialer("udp", echo.LocalAddr()), slog.New(slog.DiscardHandler))
	})
	for _, text := range []string{"a", "", strings.Repeat("b", 9000)} {
		conn, err := dialer("udp", pc.LocalAddr())(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		for range 3 {
			_, _ = io.WriteString(conn, text)
			buf := make([]byte, 1<<16)
			if n, err := conn.Read(buf); err != nil || string(buf[:n]) != strings.ToUpper(text) {
				t.Errorf("%.10q: %.10q, %v", text, buf[:n], err)
			}
		}
		_ = conn.Close()
	}
	stop()
}
