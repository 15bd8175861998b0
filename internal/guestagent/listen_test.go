package guestagent

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

func listening(t *testing.T, ctx context.Context, c *guestlink.Client, network, addr string) *guestlink.Listener { //nolint:revive // the test first
	t.Helper()
	ln, err := c.Listen(ctx, guestproto.ListenSpec{Network: network, Addr: addr, User: strconv.Itoa(os.Getuid())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ln.Close)
	return ln
}

// A connection that is made in the guest reaches the host, both ways and with its half-closes.
func TestListen(t *testing.T) {
	t.Parallel()
	c := connect(t)
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(t.TempDir(), "s")}, {"unix", ""}} {
		ln := listening(t, t.Context(), c, at[0], at[1])
		go func() {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			conn, err := c.Dial(t.Context(), guestproto.NetworkAccepted, strconv.FormatUint(a.Number, 10))
			if err != nil {
				return
			}
			all, _ := io.ReadAll(conn)
			_, _ = conn.Write(bytes.ToUpper(all))
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			_, _ = io.ReadAll(conn)
			_ = conn.Close()
		}()
		if at[0] == "unix" {
			info, err := os.Lstat(ln.Addr())
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("socket %v, %v", info, err)
			}
		}
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), at[0], ln.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("hello"))
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		if all, err := io.ReadAll(conn); err != nil || string(all) != "HELLO" {
			t.Errorf("%v: %q, %v", at, all, err)
		}
		_ = conn.Close()
	}
}

// When the host has gone, so have the listener, its files and who waits; and nobody else gets a number twice.
func TestListenEnds(t *testing.T) {
	t.Parallel()
	c := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ln := listening(t, ctx, c, "unix", "")
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "unix", ln.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's end
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("who waited is told %v", err)
	}
	until(t, func() bool { _, err := os.Lstat(filepath.Dir(ln.Addr())); return os.IsNotExist(err) })
	if _, err := c.Dial(t.Context(), guestproto.NetworkAccepted, strconv.FormatUint(a.Number, 10)); !fault.Is(err, fault.NotFound) {
		t.Errorf("took what has gone: %v", err)
	}
}

// More than a bounded number waits for nobody.
func TestListenBounds(t *testing.T) {
	t.Parallel()
	c := connect(t)
	ln := listening(t, t.Context(), c, "tcp", "127.0.0.1:0")
	var d net.Dialer
	refused := make(chan struct{}, 1)
	for range maxWaiting + 1 {
		conn, err := d.DialContext(t.Context(), "tcp", ln.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck,revive // all of them
		go func() {
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				select {
				case refused <- struct{}{}:
				default:
				}
			}
		}()
	}
	select {
	case <-refused:
	case <-time.After(time.Minute):
		t.Error("all of them wait")
	}
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	c := connect(t)
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []guestproto.ListenSpec{
		{Network: "udp", Addr: "127.0.0.1:0"},
		{Network: "tcp", Addr: "nonsense"},
		{Network: "unix", Addr: "relative"},
		{Network: "unix", Addr: file},
		{Network: "unix", Addr: "/no/such/directory/s"},
		{Network: "unix", User: "no-such-user"},
	} {
		if ln, err := c.Listen(t.Context(), spec); err == nil {
			ln.Close()
			t.Errorf("listens on %+v", spec)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("a file that was in the way: %v", err)
	}
}

// A socket is made, and removed, with the rights of its user: a path that the user controls must lead root nowhere.
func TestListenAsTheUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	c := connect(t)
	const nobody = 65534
	top, err := os.MkdirTemp("/tmp", "banger-test-") //nolint:usetesting // others can enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	theirs, ours := filepath.Join(top, "theirs"), filepath.Join(top, "ours")
	for dir, mode := range map[string]os.FileMode{top: 0o755, theirs: 0o700, ours: 0o755} {
		_ = os.Mkdir(dir, mode)
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(theirs, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	spec := guestproto.ListenSpec{Network: "unix", Addr: filepath.Join(ours, "s"), User: "nobody"}
	if ln, err := c.Listen(t.Context(), spec); !fault.Is(err, fault.Denied) {
		t.Errorf("in root's directory: %v", err)
		if err == nil {
			ln.Close()
		}
	}
	for _, addr := range []string{"", filepath.Join(theirs, "s")} {
		spec.Addr = addr
		ctx, cancel := context.WithCancel(t.Context())
		ln, err := c.Listen(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		path := ln.Addr()
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("%s: %+v, %v", path, info, err)
		}
		if addr != "" { // the user leads the path elsewhere
			if err := os.Rename(theirs, theirs+"-away"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(ours, theirs); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(ours, "s"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if addr == "" {
			until(t, func() bool { _, err := os.Lstat(filepath.Dir(path)); return os.IsNotExist(err) })
			continue
		}
		var d net.Dialer
		until(t, func() bool { // the listener has ended, and with it went what could be removed
			conn, err := d.DialContext(t.Context(), "unix", filepath.Join(theirs+"-away", "s"))
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		})
		if err := c.Sync(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Join(ours, "s")); err != nil {
			t.Errorf("what is root's was removed: %v", err)
		}
	}
	// The agent's own threads have kept their rights.
	for range 50 {
		out, exit := run(t, c, guestproto.ExecSpec{Args: []string{"cat", "/etc/shadow"}, Dir: "/"}, "")
		if exit.Code != 0 {
			t.Fatalf("root's command: %q, %+v", out, exit)
		}
	}
}

func until(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never")
		}
	}
}
