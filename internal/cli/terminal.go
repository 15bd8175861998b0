package cli

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	bangerv1 "banger/internal/gen/banger/v1"
)

// descriptor returns the file descriptor behind a stream, if there is one.
func descriptor(stream any) (fd int, ok bool) {
	f, ok := stream.(*os.File)
	if !ok || f == nil {
		return 0, false
	}
	return int(f.Fd()), true
}

func isTerminal(stream any) bool {
	fd, ok := descriptor(stream)
	return ok && term.IsTerminal(fd)
}

// isForeground reports whether this process may read from the terminal. One in the background would be stopped for
// trying (SIGTTIN).
func isForeground(stream any) bool {
	fd, ok := descriptor(stream)
	if !ok {
		return false
	}
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	// ENOTTY: not our controlling terminal, so that there is no job control on it.
	return err != nil || group == unix.Getpgrp()
}

// windowSize returns the size of a terminal, or nil if it has none.
func windowSize(stream any) *bangerv1.WindowSize {
	fd, ok := descriptor(stream)
	if !ok {
		return nil
	}
	cols, rows, err := term.GetSize(fd)
	if err != nil || cols <= 0 || rows <= 0 {
		return nil
	}
	return &bangerv1.WindowSize{Rows: uint32(rows), Cols: uint32(cols)} // from 16-bit fields, ioctl_tty(2)
}

// rawMode is a terminal that passes every key on as a byte.
type rawMode struct {
	fd    int
	saved *term.State
	once  sync.Once
}

// makeRaw puts a terminal into raw mode. The caller must call restore in every way out; goroutines that run meanwhile
// defer [rawMode.restoreInPanic].
func makeRaw(stream io.Reader) (*rawMode, error) {
	fd, ok := descriptor(stream)
	if !ok {
		return nil, fmt.Errorf("set the terminal to raw mode: not a terminal")
	}
	saved, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	return &rawMode{fd: fd, saved: saved}, nil
}

// restore undoes makeRaw; it may be called often, on nil, and from any goroutine.
func (r *rawMode) restore() {
	if r != nil {
		r.once.Do(func() { _ = term.Restore(r.fd, r.saved) })
	}
}

// restoreInPanic is deferred by goroutines: a panic in one ends the program without the main goroutine's deferred calls.
func (r *rawMode) restoreInPanic() {
	if p := recover(); p != nil { //nolint:revive // this function is deferred, by name
		r.restore()
		panic(p)
	}
}
