package guestagent

import (
	"archive/tar"
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func addrs(s string) []netip.Addr  { return []netip.Addr{addr(s)} }

// sockets returns two ends of a stream socket.
func sockets(t *testing.T) (host net.Conn, guest *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "host")
	host, err = net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	guest = os.NewFile(uintptr(fds[1]), "guest")
	t.Cleanup(func() { _, _ = host.Close(), guest.Close() })
	return host, guest
}

// connect serves an agent in this process, as a hosted one would, and returns a client of it.
func connect(t *testing.T) *guestlink.Client {
	t.Helper()
	host, guest := sockets(t)
	served := make(chan error, 1)
	go func() {
		served <- New("hosted", hosted{make(chan guestproto.Shutdown, 1)}, newChildren()).Serve(t.Context(), guest)
	}()
	s, hello, err := guestlink.Open(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if hello.Init != "hosted" || hello.Pid != os.Getpid() {
		t.Errorf("hello %+v", hello)
	}
	t.Cleanup(func() {
		_ = s.Close()
		select {
		case err := <-served:
			if err != nil && t.Context().Err() == nil {
				t.Errorf("Serve = %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve goes on after the end of its link")
		}
	})
	return guestlink.NewClient(s)
}

// run runs a command to its end and returns its output, both kinds.
func run(t *testing.T, c *guestlink.Client, spec guestproto.ExecSpec, input string) (string, guestproto.ExitStatus) {
	t.Helper()
	spec.Stdin = spec.Stdin || input != ""
	p, err := c.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v: %v", spec.Args, err)
	}
	defer p.Close() //nolint:errcheck // always nil
	if spec.Stdin {
		go func() {
			_, _ = io.Copy(p, strings.NewReader(input))
			_ = p.CloseStdin()
		}()
	}
	return drain(t, p)
}

func drain(t *testing.T, p *guestlink.Process) (string, guestproto.ExitStatus) {
	t.Helper()
	var out bytes.Buffer
	for {
		e, err := p.Recv()
		if err != nil {
			t.Fatalf("Recv: %v after %q", err, clip(out.String(), 200))
		}
		if e.Kind == guestproto.EventExit {
			return out.String(), e.Exit
		}
		out.Write(e.Data)
	}
}

// oneFile is an archive of one file of zeros.
func oneFile(name string, size int64) io.Reader {
	r, w := io.Pipe()
	go func() {
		a := tar.NewWriter(w)
		_ = a.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, Typeflag: tar.TypeReg})
		_, _ = io.CopyN(a, zeros{}, size)
		_ = w.CloseWithError(a.Close())
	}()
	return r
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
