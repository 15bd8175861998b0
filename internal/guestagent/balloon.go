package guestagent

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// late does what can wait until the guest is ready: nothing that the first command needs.
func late() {
	growAll()
	if err := loadBalloon("/lib/modules"); err != nil {
		m := machine{console: openConsole()}
		m.complain(fmt.Errorf("load the balloon driver: %w", err))
		_ = m.console.Close()
	}
}

// loadBalloon loads the driver by which the guest gives up memory, and tells the host which pages are free, if this
// kernel has it as a module. An init that knows udev loads it by itself, perhaps at this moment, which is fine.
func loadBalloon(modules string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	release := unix.ByteSliceToString(name.Release[:])
	// What it depends on, virtio and virtio_ring, is there: without them there were no link and no disk.
	found, err := filepath.Glob(filepath.Join(modules, release, "kernel/drivers/virtio/virtio_balloon.ko*"))
	if err != nil || len(found) == 0 {
		return err
	}
	return loadModule(found[0])
}
