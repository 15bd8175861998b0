package guestagent

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// deviceWait is how long a device may take to appear after its driver was loaded.
const deviceWait = 2 * time.Second

// port is a virtio-serial port as a Link. While the host is away its reads say "end of file" and poll says "hang-up"
// (drivers/char/virtio_console.c); Read reports that once, as errHangup, and then sleeps until the host is back.
type port struct {
	*os.File
	raw  syscall.RawConn
	away bool
}

// openPort opens the port of a name, waiting for it to appear. Only one process can have it open.
func openPort(name string, wait time.Duration) (*port, error) {
	deadline := time.Now().Add(wait)
	for {
		device := findPort(name)
		if device != "" {
			// Non-blocking: a blocking write spins in the kernel until the host has taken the bytes.
			f, err := os.OpenFile("/dev/"+device, os.O_RDWR|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, fmt.Errorf("open the link: %w", err)
			}
			raw, err := f.SyscallConn()
			if err != nil {
				return nil, fmt.Errorf("open the link: %w", err)
			}
			return &port{File: f, raw: raw, away: true}, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("open the link: no virtio-serial port %q", name)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// findPort returns the device of a port. The number in it depends on the controller, so only the name is to be relied on.
func findPort(name string) string {
	files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(content)) == name {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}

// Read reads what is there, or waits.
func (p *port) Read(b []byte) (int, error) {
	var n int
	var err error
	// The poller is edge-triggered: each change of the port's state wakes it once, so this doesn't spin while the host
	// is away.
	waitErr := p.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		switch {
		case err == unix.EAGAIN, err == unix.EINTR:
			return false
		case err == nil && n == 0 && p.away:
			return false
		default:
			return true
		}
	})
	switch {
	case waitErr != nil:
		return 0, waitErr
	case err != nil:
		return 0, os.NewSyscallError("read the link", err)
	case n == 0:
		p.away = true
		return 0, errHangup
	default:
		p.away = false
		return n, nil
	}
}

var (
	_ Link      = (*port)(nil)
	_ Link      = (*os.File)(nil)
	_ io.Closer = (*port)(nil)
)
