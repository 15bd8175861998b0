package qemu

import (
	"bytes"
	"net"
	"sync"
)

// timerLost is what a kernel says when it goes on without a timer (arch/x86/kernel/apic/apic.c, calibrate_APIC_clock).
// QEMU's TCG has no TSC deadline timer, so the kernel measures the APIC's timer: if the host stalls for 0.1 s in the 8 ms
// in which that begins, the measurement fails. Nothing that sleeps wakes up again in such a guest.
const timerLost = "APIC frequency too slow, disabling apic timer"

// watchLimit is how much of the console is watched, in bytes. The kernel says it before it starts process 1.
const watchLimit = 32 << 10

// watchedConsole calls lost, once, when the beginning of a guest's output says that it has lost its timer.
type watchedConsole struct {
	net.Conn
	lost func()

	mu   sync.Mutex // guards what follows; never held over I/O
	left int        // bytes that are still to be watched
	tail []byte     // the end of what was read: the sentence may come in two parts
}

func newWatchedConsole(conn net.Conn, lost func()) *watchedConsole {
	return &watchedConsole{Conn: conn, lost: lost, left: watchLimit}
}

// Read reads the guest's output.
func (c *watchedConsole) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.says(p[:n]) {
		c.lost()
	}
	return n, err
}

func (c *watchedConsole) says(text []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left <= 0 {
		return false
	}
	c.left -= len(text)
	c.tail = append(c.tail, text...)
	if bytes.Contains(c.tail, []byte(timerLost)) {
		c.left, c.tail = 0, nil
		return true
	}
	if over := len(c.tail) - len(timerLost); over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	if c.left <= 0 {
		c.tail = nil
	}
	return false
}
