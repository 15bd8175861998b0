package monitor

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"banger/internal/fault"
	"banger/internal/guestproto"
	"banger/internal/monitorlink"
)

// fakeAgent answers preambles on a byte stream and ends each session when told to, without closing the stream.
type fakeAgent struct {
	conn net.Conn
	end  chan struct{}
}

func (a *fakeAgent) serve() {
	r := bufio.NewReaderSize(a.conn, 2*guestproto.MaxMuxFrame)
	for {
		p, err := guestproto.ReadPreamble(r)
		if err != nil {
			return
		}
		b, err := guestproto.AppendAnswer(nil, p.ID, guestproto.Hello{
			Agent: "v1", Protocol: guestproto.Version, BootID: "00000000-0000-4000-8000-000000000001", Kernel: "6.1", Pid: 1, Init: "agent",
		})
		if err != nil {
			return
		}
		if _, err := a.conn.Write(b); err != nil {
			return
		}
		unblock := func() error { return a.conn.SetDeadline(time.Unix(1, 0)) }
		mux, err := yamux.Server(guestproto.NewMuxConn(guestproto.GuestSide, r, a.conn, unblock), guestproto.MuxConfig())
		if err != nil {
			return
		}
		go func() {
			for {
				stream, err := mux.AcceptStream()
				if err != nil {
					return
				}
				_ = stream.Close()
			}
		}()
		select {
		case <-a.end:
			// A frame of no known version: the host ends the session.
			_, _ = a.conn.Write([]byte{0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		case <-mux.CloseChan():
		}
		_ = mux.Close()
		_ = a.conn.SetDeadline(time.Time{})
	}
}

// TestSessionIsOpenedAgain lets the agent break a session: the link comes back, and nobody is told of a new boot.
func TestSessionIsOpenedAgain(t *testing.T) {
	t.Parallel()
	host, guest := net.Pipe()
	defer guest.Close() //nolint:errcheck // nothing to flush
	agent := &fakeAgent{conn: guest, end: make(chan struct{})}
	go agent.serve()

	ctx, cancel := context.WithCancel(t.Context())
	l, b, ready := newLink(nil), newBoard(monitorlink.Status{}), make(chan guestReady, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.keep(ctx, host, b, ready, slog.New(slog.DiscardHandler))
	}()
	if hello := <-ready; hello.release != "6.1" || hello.agent != "v1" {
		t.Errorf("first answer: %+v", hello)
	}
	for round := range 2 {
		if conn, err := l.OpenStream(ctx); err != nil {
			t.Fatalf("round %d: %v", round, err)
		} else {
			_ = conn.Close()
		}
		_, changed, _ := b.next()
		agent.end <- struct{}{}
		<-changed
		if b.get().Reachable {
			t.Errorf("round %d: reachable without a session", round)
		}
		if _, err := l.OpenStream(ctx); !fault.Is(err, fault.Unavailable) || fault.HintOf(err) == "" {
			t.Errorf("round %d, without a session: %v", round, err)
		}
		for st, changed, _ := b.next(); !st.Reachable; st, changed, _ = b.next() {
			select {
			case <-changed:
			case <-time.After(20 * time.Second):
				t.Fatalf("round %d: the session was not opened again", round)
			}
		}
	}
	if len(ready) != 0 {
		t.Error("a new session was told as a new boot")
	}
	cancel()
	<-done
}
