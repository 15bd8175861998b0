package guestproto

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// MuxConfig is the configuration of yamux at both ends. A guest may be paused for hours, and nothing is wrong then: there
// are no keepalives and no timeouts that would end a session.
func MuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 10 * 365 * 24 * time.Hour
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Minute // how long a stream closed here may wait for the other end's close
	c.LogOutput = io.Discard           // its lines repeat what a peer sends
	return c
}

// Stream is a yamux stream that behaves as a net.Conn should: Close makes blocked reads and writes return and never
// blocks itself, even while the other end is paused and the byte stream is full. Write deadlines bound the wait for the
// peer's window, not the wait for the byte stream; Close bounds both.
type Stream struct {
	*yamux.Stream
	writing sync.Mutex
	piece   []byte // lent to the goroutine that writes
	closed  chan struct{}
	once    sync.Once
}

// NewStream wraps a stream.
func NewStream(s *yamux.Stream) *Stream { return &Stream{Stream: s, closed: make(chan struct{})} }

// Read reads. After Close it fails with net.ErrClosed.
func (s *Stream) Read(b []byte) (int, error) {
	if s.isClosed() {
		return 0, net.ErrClosed
	}
	n, err := s.Stream.Read(b)
	return n, s.translate(err)
}

// Write writes in pieces of at most MaxMuxFrame.
func (s *Stream) Write(b []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for sent := 0; ; {
		if s.isClosed() {
			return sent, net.ErrClosed
		}
		if sent == len(b) {
			return sent, nil
		}
		n, err := s.writePiece(b[sent : sent+min(len(b)-sent, MaxMuxFrame)])
		sent += n
		if err != nil {
			return sent, err
		}
	}
}

// writePiece writes from a goroutine, because yamux's Write can't be interrupted while the byte stream takes nothing.
// The piece is a copy: if Close comes first, the goroutine keeps it, and nothing is written by this stream any more.
func (s *Stream) writePiece(b []byte) (int, error) {
	s.piece = append(s.piece[:0], b...)
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func(piece []byte) {
		n, err := s.Stream.Write(piece)
		done <- result{n, err}
	}(s.piece)
	select {
	case r := <-done:
		return r.n, s.translate(r.err)
	case <-s.closed:
		return 0, net.ErrClosed
	}
}

// Close gives the stream up in both directions.
func (s *Stream) Close() error {
	s.once.Do(func() {
		close(s.closed)
		_ = s.Stream.SetDeadline(time.Unix(1, 0)) // wakes the blocked
		go s.Stream.Close()                       //nolint:errcheck // it sends, and so may block; always nil
	})
	return nil
}

// SetDeadline and its kin do nothing after Close.
func (s *Stream) SetDeadline(t time.Time) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	return s.Stream.SetDeadline(t)
}

func (s *Stream) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

func (s *Stream) translate(err error) error {
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case s.isClosed():
		return net.ErrClosed
	case errors.Is(err, yamux.ErrTimeout):
		return os.ErrDeadlineExceeded
	default:
		return err
	}
}
