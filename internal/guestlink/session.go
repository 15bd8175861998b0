// Package guestlink is the host's end of the link to the agent in a guest: sessions over the byte stream, and the requests
// that an agent serves. It owns the preamble, the multiplexer and the checks on everything a guest sends; it does not own
// the VMM behind the byte stream, and it keeps no state about VMs.
//
// The guest is hostile: it can end its session, delay it and answer with lies, and no more. What it sends is bounded in
// size, checked, and stripped of control characters before it gets into an error.
//
// Lifecycle: a Session owns its connection from Open on and has three goroutines (yamux's two and none of its own besides
// Open's writer), which end with Close or with the connection. A Client has no state; each call opens a stream and closes
// it before it returns, except Start and Dial, whose results own theirs. No lock is held over I/O but a stream's own.
package guestlink

import (
	"bufio"
	"context"
	"crypto/rand"
	"net"
	"time"

	"github.com/hashicorp/yamux"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// Opener opens streams to an agent. A Session is one; a socket that is bridged to a session, connection by connection, is
// another. The connections need no half-close.
type Opener interface {
	OpenStream(ctx context.Context) (net.Conn, error)
}

// Session is an open session with the agent of one guest.
type Session struct {
	mux *yamux.Session
}

// Open starts a session over the byte stream to a guest and waits for the agent's answer, which is the sign that the
// guest is ready: commands can run. Stale bytes of earlier sessions are discarded in both directions; an earlier session
// that the guest still has ends. On success the session owns conn. On error conn stays the caller's, and Open may be tried
// again on it.
//
// Errors: the context's, if it ended; fault.Unavailable if the byte stream ended; fault.Corrupt if the answer makes no sense.
func Open(ctx context.Context, conn net.Conn) (*Session, guestproto.Hello, error) {
	p := guestproto.Preamble{TimeNS: time.Now().UnixNano()}
	_, _ = rand.Read(p.ID[:]) // never fails (crypto/rand)
	_, _ = rand.Read(p.Entropy[:])

	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(p.Append(nil))
		written <- err
	}()
	r := bufio.NewReaderSize(conn, 2*guestproto.MaxMuxFrame)
	hello, err := guestproto.ReadAnswer(r, p.ID)
	if err != nil {
		_ = conn.SetDeadline(time.Unix(1, 0)) // for the writer
	}
	if werr := <-written; err == nil {
		err = werr
	}
	if !stop() {
		<-fired
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.SetDeadline(time.Time{})
		return nil, guestproto.Hello{}, linkError(ctx, "open a session with the guest agent", err)
	}
	mux, err := yamux.Client(guestproto.NewMuxConn(guestproto.HostSide, r, conn, conn.Close), guestproto.MuxConfig())
	if err != nil {
		return nil, guestproto.Hello{}, fault.New(fault.Internal, "start yamux: %w", err)
	}
	return &Session{mux: mux}, hello, nil
}

// OpenStream opens a stream. The context bounds the call only.
func (s *Session) OpenStream(ctx context.Context) (net.Conn, error) {
	type result struct {
		stream *yamux.Stream
		err    error
	}
	// yamux's call blocks while the byte stream is full or too many streams wait for the guest.
	opened := make(chan result, 1)
	go func() {
		stream, err := s.mux.OpenStream()
		opened <- result{stream, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, fault.New(fault.Unavailable, "open a stream to the guest agent: %w", r.err)
		}
		return guestproto.NewStream(r.stream), nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				_ = r.stream.Close()
			}
		}()
		return nil, linkError(ctx, "open a stream to the guest agent", ctx.Err())
	}
}

// Done is closed when the session has ended: by Close, by the end of the byte stream, or because the guest broke the
// protocol.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Close ends the session, its streams and its connection.
func (s *Session) Close() error { return s.mux.Close() }
