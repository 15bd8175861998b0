package guestagent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// maxWaiting is how many accepted connections of a listener wait for the host to take them; more are closed.
const maxWaiting = 64

// accepted holds the connections that were made to the agent's listeners, until the host dials them by their numbers.
type accepted struct {
	mu   sync.Mutex
	last uint64
	conn map[uint64]net.Conn
}

func (a *accepted) add(conn net.Conn) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		a.conn = make(map[uint64]net.Conn)
	}
	a.last++
	a.conn[a.last] = conn
	return a.last
}

// take returns a connection, which is the caller's then; nil if it is not there.
func (a *accepted) take(number uint64) net.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	conn := a.conn[number]
	delete(a.conn, number)
	return conn
}

// listen listens for the host until that gives the stream up, and tells it of each connection.
func (a *Agent) listen(ctx context.Context, s *stream, spec guestproto.ListenSpec) error {
	u, err := readUser(spec.User)
	if err != nil {
		return err
	}
	ln, remove, err := openListener(ctx, spec, u)
	if err != nil {
		return fault.New(dialKind(err), "listen in the guest: %w", err)
	}
	defer remove()
	defer ln.Close() //nolint:errcheck // nothing is lost by it
	if err := s.w.JSON(guestproto.FrameAnswer, guestproto.Listening{Addr: ln.Addr().String()}); err != nil {
		return nil //nolint:nilerr // nobody is left to tell
	}
	ctx, cancel := s.abandoned(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	var numbers []uint64
	defer func() {
		for _, n := range numbers {
			if conn := a.accepted.take(n); conn != nil {
				_ = conn.Close()
			}
		}
	}()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil { // out of descriptors: that passes
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		numbers = a.accepted.waiting(numbers)
		if len(numbers) == maxWaiting {
			_ = conn.Close()
			continue
		}
		n := a.accepted.add(conn)
		numbers = append(numbers, n)
		if s.w.JSON(guestproto.FrameAnswer, guestproto.Accepted{Number: n, From: conn.RemoteAddr().String()}) != nil {
			return nil
		}
	}
}

const acceptPause = 100 * time.Millisecond

// waiting returns those of the numbers that nobody has taken yet.
func (a *accepted) waiting(numbers []uint64) []uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	left := numbers[:0]
	for _, n := range numbers {
		if a.conn[n] != nil {
			left = append(left, n)
		}
	}
	return left
}

// openListener makes a listener, and what removes the files that it has made.
func openListener(ctx context.Context, spec guestproto.ListenSpec, u user) (net.Listener, func(), error) {
	var lc net.ListenConfig
	switch spec.Network {
	case "tcp", "tcp4", "tcp6":
		ln, err := lc.Listen(ctx, spec.Network, spec.Addr)
		return ln, func() {}, err
	case "unix":
	default:
		return nil, nil, fault.New(fault.Invalid, "can't listen on %q: use tcp, tcp4, tcp6 or unix", spec.Network)
	}
	path, remove := spec.Addr, func() {}
	if path == "" {
		dir, err := privateDir(u)
		if err != nil {
			return nil, nil, err
		}
		path, remove = filepath.Join(dir, "agent."+strconv.Itoa(os.Getpid())), func() { _ = os.RemoveAll(dir) }
	}
	if !filepath.IsAbs(path) {
		return nil, nil, fault.New(fault.Invalid, "the socket's path %q is not absolute", clip(path, 80))
	}
	ln, err := lc.Listen(ctx, "unix", path) // Close removes the file
	if err == nil {
		if err = os.Chmod(path, 0o600); err == nil && os.Geteuid() == 0 {
			err = os.Lchown(path, int(u.uid), int(u.gid))
		}
		if err != nil {
			_ = ln.Close()
		}
	}
	if err != nil {
		remove()
		return nil, nil, err
	}
	return ln, remove, nil
}

// privateDir makes a directory that only the user can enter. An image may have no /tmp.
func privateDir(u user) (dir string, err error) {
	for _, parent := range []string{"/tmp", "/run", "/dev"} {
		if dir, err = os.MkdirTemp(parent, "banger-"); err == nil { // 0700
			break
		}
	}
	if err == nil && os.Geteuid() == 0 {
		err = os.Lchown(dir, int(u.uid), int(u.gid))
	}
	return dir, err
}

// takeAccepted is a dial of a connection that was accepted.
func (a *Agent) takeAccepted(number string) (net.Conn, error) {
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return nil, fault.New(fault.Invalid, "bad number of a connection %q", clip(number, 80))
	}
	conn := a.accepted.take(n)
	if conn == nil {
		return nil, fault.New(fault.NotFound, "the connection has gone, or was taken: %w", unix.ENOTCONN)
	}
	return conn, nil
}
