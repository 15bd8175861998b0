package guestlink_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

// socketPair returns two ends of a stream socket.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}

var goodHello = guestproto.Hello{
	Agent: "test", Protocol: guestproto.Version, BootID: "00000000-0000-0000-0000-000000000001", Kernel: "6.1.0",
	UptimeNS: 1, Pid: 1, Init: "agent",
}

// answer plays a guest up to its answer, whose bytes edit may change.
func answer(t *testing.T, conn net.Conn, hello guestproto.Hello, edit func([]byte) []byte) {
	t.Helper()
	head := make([]byte, 64<<10)
	var got []byte
	for !bytes.Contains(got, []byte("BANGER\n")) || len(got) < 32<<10 {
		n, err := conn.Read(head)
		if err != nil {
			t.Errorf("the host wrote no preamble: %v", err)
			return
		}
		got = append(got, head[:n]...)
	}
	at := bytes.Index(got, []byte("\xb5BANGER\n"))
	id := guestproto.SessionID(got[at+9:])
	b, err := guestproto.AppendAnswer(nil, id, hello)
	if err != nil {
		t.Error(err)
		return
	}
	if edit != nil {
		b = edit(b)
	}
	if _, err := conn.Write(b); err != nil {
		t.Error(err)
	}
}

func TestOpenChecksTheAnswer(t *testing.T) {
	t.Parallel()
	with := func(edit func(*guestproto.Hello)) guestproto.Hello {
		h := goodHello
		edit(&h)
		return h
	}
	stale := bytes.Repeat([]byte("\xb5BANGER\n old bytes \xb5"), 10_000)
	cases := map[string]struct {
		hello guestproto.Hello
		edit  func([]byte) []byte
		want  string // empty: it is taken
	}{
		"good":           {hello: goodHello},
		"after stale":    {hello: goodHello, edit: func(b []byte) []byte { return append(bytes.Clone(stale), b...) }},
		"other protocol": {hello: with(func(h *guestproto.Hello) { h.Protocol = 9 }), want: "protocol 9"},
		"boot id":        {hello: with(func(h *guestproto.Hello) { h.BootID = "../../../../../../../../../etc/passwd" }), want: "boot id"},
		"escape codes":   {hello: with(func(h *guestproto.Hello) { h.Kernel = "\x1b[2J" }), want: "malformed"},
		"long version":   {hello: with(func(h *guestproto.Hello) { h.Agent = strings.Repeat("x", 65) }), want: "malformed"},
		"negative pid":   {hello: with(func(h *guestproto.Hello) { h.Pid = -1 }), want: "negative"},
		"absurd length":  {hello: goodHello, edit: func(b []byte) []byte { binary.BigEndian.PutUint32(b[25:], 1<<31); return b }, want: "at most"},
		"no json":        {hello: goodHello, edit: func(b []byte) []byte { b[29] = 'x'; return b }, want: "decode hello"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, guest := socketPair(t)
			go answer(t, guest, c.hello, c.edit)
			s, hello, err := guestlink.Open(t.Context(), host)
			if c.want == "" {
				if err != nil || hello != goodHello {
					t.Fatalf("Open = %+v, %v", hello, err)
				}
				_ = s.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !fault.Is(err, fault.Corrupt) {
				t.Fatalf("Open = %v (%v), want %q", err, fault.KindOf(err), c.want)
			}
		})
	}
}

func TestOpenEnds(t *testing.T) {
	t.Parallel()
	t.Run("with its context", func(t *testing.T) {
		t.Parallel()
		host, guest := socketPair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, _, err := guestlink.Open(ctx, host); !fault.Is(err, fault.Timeout) {
			t.Fatalf("Open = %v", err)
		}
		// The connection is still the caller's, and a guest that comes late finds the second preamble.
		go answerEach(guest)
		s, _, err := guestlink.Open(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	})
	t.Run("with the byte stream", func(t *testing.T) {
		t.Parallel()
		host, guest := socketPair(t)
		_ = guest.Close()
		if _, _, err := guestlink.Open(t.Context(), host); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("Open = %v", err)
		}
	})
}

// answerEach answers every preamble that arrives whole. The first may not: its writer had little time.
func answerEach(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		p, err := guestproto.ReadPreamble(r)
		if err != nil {
			return
		}
		b, _ := guestproto.AppendAnswer(nil, p.ID, goodHello)
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}

// header is the header of a yamux frame.
func header(typ byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, typ}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

func TestHostileGuestEndsItsSessionOnly(t *testing.T) {
	t.Parallel()
	cases := map[string][]byte{
		"ping":            header(2, 1, 0, 7),
		"opens a stream":  header(1, 1, 2, 0),
		"frame too long":  header(0, 0, 1, 1<<31),
		"unknown type":    header(77, 0, 0, 0),
		"unknown version": {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"go away, error":  header(3, 0, 0, 1),
	}
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, guest := socketPair(t)
			go answer(t, guest, goodHello, func(b []byte) []byte { return append(b, bad...) })
			s, _, err := guestlink.Open(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the session goes on")
			}
			if err := guestlink.NewClient(s).Ping(t.Context()); !fault.Is(err, fault.Unavailable) {
				t.Fatalf("Ping = %v (%v)", err, fault.KindOf(err))
			}
		})
	}
}

func TestCancelWhileGuestTakesNothing(t *testing.T) {
	t.Parallel()
	host, guest := socketPair(t)
	go answer(t, guest, goodHello, nil) // and never reads again, as if paused
	s, _, err := guestlink.Open(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's end
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	done := make(chan error, 400)
	for range cap(done) {
		go func() { // enough to fill the socket and every queue
			done <- guestlink.NewClient(s).Configure(ctx, guestproto.Identity{Env: []string{"X=" + strings.Repeat("x", 60_000)}})
		}()
	}
	for range cap(done) {
		select {
		case err := <-done:
			if !fault.Is(err, fault.Timeout) {
				t.Fatalf("Configure = %v (%v)", err, fault.KindOf(err))
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a call outlives its context")
		}
	}
}

// pipeOpener serves each stream with a function.
type pipeOpener func(net.Conn)

func (p pipeOpener) OpenStream(context.Context) (net.Conn, error) {
	host, guest := net.Pipe()
	go func() {
		defer guest.Close() //nolint:errcheck // a test's end
		p(guest)
	}()
	return host, nil
}

func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	frame := func(typ guestproto.FrameType, payload string) []byte {
		b := binary.BigEndian.AppendUint32([]byte{byte(typ)}, uint32(len(payload)))
		return append(b, payload...)
	}
	cases := map[string]struct {
		reply []byte
		kind  fault.Kind
	}{
		"nothing":        {nil, fault.Unavailable},
		"half a header":  {[]byte{1, 2}, fault.Unavailable},
		"absurd length":  {[]byte{byte(guestproto.FrameDone), 0xff, 0xff, 0xff, 0xff}, fault.Corrupt},
		"unknown type":   {[]byte{200, 0, 0, 0, 0}, fault.Corrupt},
		"wrong type":     {frame(guestproto.FrameExit, "{}"), fault.Corrupt},
		"bad error":      {frame(guestproto.FrameError, "["), fault.Corrupt},
		"unknown kind":   {frame(guestproto.FrameError, `{"kind":"zzz","message":"x"}`), fault.Internal},
		"escape in text": {frame(guestproto.FrameError, `{"kind":"busy","message":"a\u001b]0;b\nc"}`), fault.Busy},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := guestlink.NewClient(pipeOpener(func(conn net.Conn) {
				_, _ = guestproto.NewReader(conn).Next(guestproto.MaxRequest)
				_, _ = conn.Write(c.reply)
			}))
			err := client.Ping(t.Context())
			if err == nil || fault.KindOf(err) != c.kind {
				t.Fatalf("Ping = %v (%v), want %v", err, fault.KindOf(err), c.kind)
			}
			if strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Fatalf("control characters in %q", err)
			}
		})
	}
}

func TestHostileProcess(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]func(*guestproto.Writer){
		"bad pid": func(w *guestproto.Writer) { _ = w.JSON(guestproto.FrameStarted, guestproto.Started{Pid: -4}) },
		"bad status": func(w *guestproto.Writer) {
			started(w)
			_ = w.JSON(guestproto.FrameExit, guestproto.ExitStatus{Code: 4711})
		},
		"bad signal": func(w *guestproto.Writer) {
			started(w)
			_ = w.JSON(guestproto.FrameExit, guestproto.ExitStatus{Signal: -1})
		},
		"bad credit":  func(w *guestproto.Writer) { started(w); _ = w.Frame(guestproto.FrameCredit, []byte{1}) },
		"wrong frame": func(w *guestproto.Writer) { started(w); started(w) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := guestlink.NewClient(pipeOpener(func(conn net.Conn) {
				_, _ = guestproto.NewReader(conn).Next(guestproto.MaxRequest)
				script(guestproto.NewWriter(conn))
			}))
			p, err := client.Start(t.Context(), guestproto.ExecSpec{Args: []string{"x"}})
			if err == nil {
				defer p.Close() //nolint:errcheck // a test's end
				_, err = p.Recv()
			}
			if !fault.Is(err, fault.Corrupt) {
				t.Fatalf("got %v (%v)", err, fault.KindOf(err))
			}
		})
	}
	t.Run("gone before the exit", func(t *testing.T) {
		t.Parallel()
		client := guestlink.NewClient(pipeOpener(func(conn net.Conn) {
			_, _ = guestproto.NewReader(conn).Next(guestproto.MaxRequest)
			started(guestproto.NewWriter(conn))
		}))
		p, err := client.Start(t.Context(), guestproto.ExecSpec{Args: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Recv(); !fault.Is(err, fault.Unavailable) || errors.Is(err, net.ErrClosed) {
			t.Fatalf("Recv = %v (%v)", err, fault.KindOf(err))
		}
	})
}

func started(w *guestproto.Writer) {
	_ = w.JSON(guestproto.FrameStarted, guestproto.Started{Pid: 7})
}

func TestPutStopsWhenGuestRefuses(t *testing.T) {
	t.Parallel()
	client := guestlink.NewClient(pipeOpener(func(conn net.Conn) {
		_, _ = guestproto.NewReader(conn).Next(guestproto.MaxRequest)
		_ = guestproto.NewWriter(conn).JSON(guestproto.FrameError, guestproto.Error{Kind: "exhausted", Message: "full"})
	}))
	endless, feeder := io.Pipe() // nobody ever writes
	defer feeder.Close()         //nolint:errcheck // a test's end
	if err := client.Put(t.Context(), "/x", endless, guestlink.PutOptions{}); !fault.Is(err, fault.Exhausted) {
		t.Fatalf("Put = %v (%v)", err, fault.KindOf(err))
	}
}
