package monitorlink

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/hostexec"
)

// What a monitor inherits. Because the daemon makes the socket, it can connect before the monitor has come up: the
// connection waits in the backlog and nobody polls. Because the daemon takes the lock, there is no moment at which a
// monitor is on its way and a daemon that comes after a crash cannot see it. The lock's descriptor is left open in
// the VMM too, on purpose: the lock is free when both are gone, and only then may the disks be touched.
const (
	listenerFD = 3
	lockFD     = 4
	// keptLockFD is the least number at which the monitor keeps the lock: beyond those that it gives to its children
	// from 3 on, one of which would take the lock's place in the VMM.
	keptLockFD = 64
)

// Start starts the monitor of a VM: it writes the launch record, makes the socket and runs the program, detached, so
// that the monitor outlives the daemon.
func Start(program string, args []string, d Dirs, l Launch) error {
	lock, err := d.acquire()
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // the monitor has its own copy
	if err := d.ForgetExit(); err != nil {
		return err
	}
	if err := WriteJSON(d.launch(), l); err != nil {
		return fmt.Errorf("write launch record: %w", err)
	}
	if err := os.Remove(d.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old monitor socket: %w", err)
	}
	// The directory is 0700, so the socket cannot be reached by others even before its mode is set.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Socket(), Net: "unix"})
	if err != nil {
		return fmt.Errorf("make monitor socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close() //nolint:errcheck // the monitor has its own copy
	if err := os.Chmod(d.Socket(), 0o600); err != nil {
		return fmt.Errorf("protect monitor socket: %w", err)
	}
	file, err := ln.File()
	if err != nil {
		return fmt.Errorf("hand over monitor socket: %w", err)
	}
	defer file.Close() //nolint:errcheck // as above
	log, err := os.OpenFile(d.log(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make monitor log: %w", err)
	}
	defer log.Close() //nolint:errcheck // as above
	_, err = hostexec.Start(hostexec.Cmd{
		Path:     program,
		Args:     append(args, d.State),
		Dir:      "/",
		Stdout:   log,
		Stderr:   log,
		Files:    []*os.File{listenerFD - 3: file, lockFD - 3: lock},
		Detached: true,
	})
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	return nil
}

// KeepLock makes every child of the calling monitor process inherit the lock that the monitor has inherited. Call it
// once, before anything else opens or closes descriptors.
func KeepLock() error {
	// Without close-on-exec, on purpose.
	if _, err := unix.FcntlInt(lockFD, unix.F_DUPFD, keptLockFD); err != nil {
		return fmt.Errorf("keep monitor lock: %w", err)
	}
	if err := unix.Close(lockFD); err != nil {
		return fmt.Errorf("keep monitor lock: %w", err)
	}
	return nil
}

// Listener returns the socket that the calling monitor process has inherited.
func Listener() (*net.UnixListener, error) {
	f := os.NewFile(listenerFD, "monitor socket")
	defer f.Close() //nolint:errcheck // net.FileListener makes its own copy
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over monitor socket: %w", err)
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("inherited descriptor %d is a %T", listenerFD, ln)
	}
	return u, nil
}
