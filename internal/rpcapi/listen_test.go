//go:build fakevmm

package rpcapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/fault"
)

func TestListen(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", ""}} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel() //nolint:revive // at the end will do
		ln, err := b.api.Listen(ctx, "a", at[0], at[1], "")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() {
			conn, err := ln.Accept()
			if err != nil {
				served <- err
				return
			}
			defer conn.Close() //nolint:errcheck // a test's
			all, _ := io.ReadAll(conn)
			_, _ = conn.Write(bytes.ToUpper(all))
			served <- conn.(interface{ CloseWrite() error }).CloseWrite()
			_, _ = conn.Read(make([]byte, 1)) // until the peer has all
		}()
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), at[0], ln.Addr().String()) // the fake guest is this host
		if err != nil {
			t.Fatal(err)
		}
		sent := bytes.Repeat([]byte("abc"), 1<<18)
		go func() {
			_, _ = conn.Write(sent)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, bytes.ToUpper(sent)) {
			t.Errorf("%v: %d bytes came back, %v", at, len(got), err)
		}
		_ = conn.Close()
		if err := <-served; err != nil {
			t.Errorf("%v: %v", at, err)
		}
		_ = ln.Close()
		if at[0] == "unix" {
			waitGone(t, filepath.Dir(ln.Addr().String())) // or the fake guest's end would leave it on this host
		}
	}
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	b.create("still", false)
	taken := b.listen(func(*net.TCPConn) {})
	for name, c := range map[string]struct {
		vm, network, address, user string
		kind                       fault.Kind
	}{
		"no such VM":   {"none", "tcp", "127.0.0.1:0", "", fault.NotFound},
		"not running":  {"still", "tcp", "127.0.0.1:0", "", fault.Precondition},
		"network":      {"a", "udp", "127.0.0.1:0", "", fault.Invalid},
		"address":      {"a", "tcp", "127.0.0.1", "", fault.Invalid},
		"path":         {"a", "unix", "s", "", fault.Invalid},
		"user":         {"a", "unix", "", "no-such-user", fault.Invalid},
		"no directory": {"a", "unix", "/no/such/s", "", fault.NotFound},
		"taken":        {"a", "tcp", taken, "", fault.Exists},
	} {
		ln, err := b.api.Listen(t.Context(), c.vm, c.network, c.address, c.user)
		if !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, kind %s", name, err, fault.KindOf(err))
		}
		if err == nil {
			_ = ln.Close()
		}
	}
}

// TestListenGoesWithItsClient wants nothing to be left in the guest, and nobody to wait, whichever way the client ends.
func TestListenGoesWithItsClient(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	for _, by := range []string{"close", "context"} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel() //nolint:revive // at the end will do
		ln, err := b.api.Listen(ctx, "a", "unix", "", "")
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan error, 1)
		go func() {
			_, err := ln.Accept()
			accepted <- err
		}()
		if by == "close" {
			_ = ln.Close()
		} else {
			cancel()
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Accept = %v", by, err)
		}
		waitGone(t, filepath.Dir(ln.Addr().String()))
	}
}

func waitGone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", path)
		}
	}
}
