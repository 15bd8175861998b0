package monitor

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"banger/internal/monitorlink"
)

// Main is the monitor process of the VM whose state directory is given. It inherits its socket and its lock from the
// daemon (package monitorlink) and logs to its standard error.
func Main(ctx context.Context, dir string) error {
	unix.Umask(0o077)
	// A monitor lives long and does little: a small heap is worth more than few collections.
	debug.SetGCPercent(50)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	dirs := monitorlink.Dirs{State: dir}
	launch, err := dirs.ReadLaunch()
	if err != nil {
		return err
	}
	dirs.Runtime = launch.Machine.Dir
	if err := monitorlink.KeepLock(); err != nil {
		return err
	}
	ln, err := monitorlink.Listener()
	if err != nil {
		return err
	}
	return New(dirs, launch, ln, log).Run(ctx)
}
