package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/config"
	"banger/internal/fault"
)

// takeLock makes sure that one daemon uses the state directory. The lock lasts as long as the file that is returned, and
// goes with the process, however it ends.
//
// It is a lock of fcntl(2), which belongs to the process. One of flock(2) belongs to the open file: a child that is just
// being started has that, too, until it has become its own program, and would keep the lock of a daemon that was killed
// meanwhile, so that its successor finds "another daemon". The price: the process must not open the file a second time,
// for any close of it gives the lock back.
func takeLock(p config.Paths) (*os.File, error) {
	f, err := os.OpenFile(p.LockFile(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open daemon lock: %w", err)
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &whole)
	if err == nil {
		return f, nil
	}
	defer f.Close() //nolint:errcheck // nothing was written
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("lock %s: %w", p.LockFile(), err)
	}
	by := "another daemon"
	holder := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if unix.FcntlFlock(f.Fd(), unix.F_GETLK, &holder) == nil && holder.Type != unix.F_UNLCK && holder.Pid > 0 {
		by += fmt.Sprintf(" (process %d)", holder.Pid)
	}
	return nil, fault.New(fault.Exists, "%s runs with the state directory %s", by, p.State).
		WithHint("talk to it: banger daemon status; end it: banger daemon stop")
}
