// Package relay carries what comes to a listening socket on to somewhere else: connections, each to one that is dialled for
// it, and datagrams, of which each sender has a flow of its own. It owns the bytes between, half-closes and resets, and the
// limits; it does not own the sockets' addresses nor how the other side is reached.
//
// Goroutines: Streams and Datagrams run in their caller, add two for each connection and flow, and return when all have
// ended. The one lock guards the table of flows and is never held over I/O.
package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Dial connects to the other side.
type Dial func(ctx context.Context) (net.Conn, error)

const (
	// MaxConns is how many connections one listener carries at a time; others wait to be accepted.
	MaxConns = 256
	// dialTimeout bounds the connecting to the other side.
	dialTimeout = 30 * time.Second
	// acceptPause follows an accept that failed, for want of descriptors most likely.
	acceptPause = 100 * time.Millisecond
)

// Streams carries the connections of a listener until the context ends, then closes it and cuts them off. It returns an error
// if the listener fails before. A connection that can't be carried on is reset.
func Streams(ctx context.Context, ln net.Listener, dial Dial, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	defer ln.Close() //nolint:errcheck // nothing to lose
	slots := make(chan struct{}, MaxConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := ln.Accept()
		switch {
		case err == nil:
			conns.Go(func() {
				defer func() { <-slots }()
				carry(ctx, conn, dial, log)
			})
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		<-slots
		log.Warn("accept a connection to carry on", "addr", ln.Addr(), "err", err)
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
		}
	}
}

func carry(ctx context.Context, conn net.Conn, dial Dial, log *slog.Logger) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	other, err := dial(dialing)
	cancel()
	if err != nil {
		log.Debug("carry a connection on", "addr", conn.LocalAddr(), "err", err)
		reset(conn)
		return
	}
	stop := context.AfterFunc(ctx, func() { reset(conn); _ = other.Close() })
	defer stop()
	Join(conn, other)
}

// Join copies both ways, each until its end, which the other side is told by a half-close. If one way breaks, both
// connections are reset. It closes them.
func Join(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(b, a)
	}()
	pass(a, b)
	<-done
	_ = a.Close()
	_ = b.Close()
}

// pass copies one way.
func pass(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	}
	if err != nil {
		reset(to)
		reset(from)
	}
}

// reset closes a connection such that its peer sees that something broke, if it can be told.
func reset(conn net.Conn) {
	if tc, ok := conn.(*net.TCPConn); ok {
		_ = tc.SetLinger(0)
	}
	_ = conn.Close()
}
