package guestagent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

func TestDialKeepsDatagramsApart(t *testing.T) {
	t.Parallel()
	c := connect(t)
	l, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's end
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(bytes.ToUpper(buf[:n]), from)
		}
	}()
	conn, err := c.Dial(t.Context(), "udp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's end
	for _, size := range []int{1, 0, 5, 1400, guestproto.MaxData} {
		if _, err := conn.Write(bytes.Repeat([]byte("x"), size)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 64<<10)
		if n, err := conn.Read(buf); err != nil || n != size || !bytes.Equal(buf[:n], bytes.Repeat([]byte("X"), size)) {
			t.Errorf("of %d bytes %d came back, %v", size, n, err)
		}
	}
	if _, err := conn.Write(make([]byte, guestproto.MaxData+1)); !fault.Is(err, fault.Invalid) {
		t.Errorf("a datagram that is too long: %v", err)
	}
}

func TestDialTellsAResetFromAnEnd(t *testing.T) {
	t.Parallel()
	c := connect(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's end
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 1)) // a reset before that may be one of connecting
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}()
	conn, err := c.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's end
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("after a reset: %v", err)
	}
}
