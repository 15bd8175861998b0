package guestagent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

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
		return fault.New(listenKind(err), "listen in the guest: %w", err)
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

// listenKind classifies a failure to listen, unless it is classified.
func listenKind(err error) fault.Kind {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return fault.KindOf(known)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fault.Exists
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fault.Invalid
	default:
		return dialKind(err)
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
	switch spec.Network {
	case "tcp", "tcp4", "tcp6":
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, spec.Network, spec.Addr)
		return ln, func() {}, err
	case "unix":
	default:
		return nil, nil, fault.New(fault.Invalid, "can't listen on %q: use tcp, tcp4, tcp6 or unix", spec.Network)
	}
	if spec.Addr != "" && !filepath.IsAbs(spec.Addr) {
		return nil, nil, fault.New(fault.Invalid, "the socket's path %q is not absolute", clip(spec.Addr, 80))
	}
	var ln net.Listener
	var dir string // made for the socket; empty: none
	path := spec.Addr
	err := asUser(u, func() (err error) {
		if path == "" {
			if dir, err = privateDir(); err != nil {
				return err
			}
			path = filepath.Join(dir, "agent."+strconv.Itoa(os.Getpid()))
		}
		ln, err = listenPrivately(ctx, path)
		return err
	})
	remove := func() {
		_ = asUser(u, func() error {
			if ln != nil {
				_ = os.Remove(path)
			}
			if dir != "" {
				_ = os.Remove(dir)
			}
			return nil
		})
	}
	if err != nil {
		remove()
		return nil, nil, err
	}
	return ln, remove, nil
}

// listenPrivately listens on a socket that has the mode 0600 from the moment that it is there: bind(2) takes it from that of the
// descriptor (unix_bind_bsd).
func listenPrivately(ctx context.Context, path string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) { inner = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, inner)
	}}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // whose right that is depends on the user
	return ln, nil
}

// privateDir makes a directory that only its owner can enter. An image may have no /tmp.
func privateDir() (dir string, err error) {
	for _, parent := range []string{"/tmp", "/run", "/dev"} {
		if dir, err = os.MkdirTemp(parent, "banger-"); err == nil { // 0700
			return dir, nil
		}
	}
	return "", err
}

// asUser calls f with the user's rights to files, and what f makes is the user's: a path that leads through directories of a user
// must not be followed with root's rights, for the user can change where it leads. f runs on a thread of its own, which has the
// user's ids for files (setfsuid(2)) and ends with it; it must not start goroutines that are to have them.
func asUser(u user, f func() error) error {
	if os.Geteuid() != 0 || u.uid == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
		groups := append([]uint32{u.gid}, u.groups...)
		// Of this thread alone, unlike what syscall.Setgroups does.
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
			done <- os.NewSyscallError("setgroups", errno)
			return
		}
		// These report nothing but what was set before; asked with what can't be, they say what is set now.
		_, _ = unix.SetfsgidRetGid(int(u.gid))
		_, _ = unix.SetfsuidRetUid(int(u.uid))
		if gid, _ := unix.SetfsgidRetGid(-1); gid != int(u.gid) {
			done <- os.NewSyscallError("setfsgid", unix.EPERM)
			return
		}
		if uid, _ := unix.SetfsuidRetUid(-1); uid != int(u.uid) {
			done <- os.NewSyscallError("setfsuid", unix.EPERM)
			return
		}
		done <- f()
	}()
	return <-done
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
