package monitor

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Bounds of the console, in bytes.
const (
	maxLog      = 8 << 20   // the log is rotated at this size; one older file is kept
	maxTail     = 16 << 10  // what is kept in memory for error messages
	maxBacklog  = 256 << 10 // what a slow reader may leave unread before output is dropped for it
	tailLines   = 15        // how many lines an error message shows
	dropWarning = "\r\n[banger: output dropped, the reader was too slow]\r\n"
)

// console takes what the guest prints, writes it to the log and passes it on to those who are attached.
type console struct {
	path string

	mu      sync.Mutex
	file    *os.File // nil: could not be opened, or a write failed
	size    int64
	last    []byte
	readers map[*reader]struct{}
	input   io.Writer
	ended   bool
	drained chan struct{} // closed when all output has been read
}

// reader is one attached client.
type reader struct {
	buf     []byte
	dropped bool
	wake    chan struct{} // capacity 1
}

func newConsole(path string) *console {
	return &console{path: path, readers: map[*reader]struct{}{}, drained: make(chan struct{})}
}

// pump reads the guest's output until the VMM's end. It always reads, so that the guest never waits for a reader.
func (c *console) pump(vm io.ReadWriter) {
	c.mu.Lock()
	c.input = vm
	c.open()
	c.mu.Unlock()
	buf := make([]byte, 8<<10)
	for {
		n, err := vm.Read(buf)
		if n > 0 {
			c.write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for r := range c.readers {
		r.signal()
	}
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
	close(c.drained)
}

// open opens the log for appending: a VM's second start goes on where the first ended.
func (c *console) open() {
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		c.last = append(c.last, "[banger: console log: "+err.Error()+"]\n"...)
		return
	}
	c.file = f
	if st, err := f.Stat(); err == nil {
		c.size = st.Size()
	}
}

func (c *console) write(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = append(c.last, p...)
	if over := len(c.last) - maxTail; over > 0 {
		c.last = append(c.last[:0], c.last[over:]...)
	}
	if c.file != nil {
		if c.size+int64(len(p)) > maxLog {
			_ = c.file.Close()
			c.file, c.size = nil, 0
			_ = os.Rename(c.path, c.path+".1")
			c.open()
		}
		if c.file != nil {
			n, _ := c.file.Write(p) // a full disk must not stop the guest; its output goes on to readers
			c.size += int64(n)
		}
	}
	for r := range c.readers {
		if len(r.buf)+len(p) > maxBacklog {
			r.buf, r.dropped = r.buf[:0], true
		}
		r.buf = append(r.buf, p...)
		r.signal()
	}
}

func (r *reader) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// attach registers a reader; with history it also returns the log so far, opened so that nothing is missed or doubled.
func (c *console) attach(history bool) (*reader, io.ReadCloser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &reader{wake: make(chan struct{}, 1)}
	c.readers[r] = struct{}{}
	if !history {
		return r, nil
	}
	f, err := os.Open(c.path)
	if err != nil {
		return r, nil
	}
	return r, struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, c.size), f}
}

func (c *console) detach(r *reader) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.readers, r)
}

// read returns what has come for a reader since the last call; it waits for something. io.EOF: the VM has ended.
func (c *console) read(r *reader, stop <-chan struct{}) ([]byte, error) {
	for {
		c.mu.Lock()
		out, ended := r.buf, c.ended
		if r.dropped {
			out = append([]byte(dropWarning), out...)
		}
		r.buf, r.dropped = nil, false
		c.mu.Unlock()
		if len(out) > 0 {
			return out, nil
		}
		if ended {
			return nil, io.EOF
		}
		select {
		case <-r.wake:
		case <-stop:
			return nil, io.ErrClosedPipe
		}
	}
}

// send passes input on to the guest.
func (c *console) send(p []byte) error {
	c.mu.Lock()
	in := c.input
	c.mu.Unlock()
	if in == nil {
		return io.ErrClosedPipe
	}
	_, err := in.Write(p)
	return err
}

// settle waits for the last output of a VMM that has ended.
func (c *console) settle() {
	select {
	case <-c.drained:
	case <-time.After(time.Second):
	}
}

// tail returns the last lines, without what would upset a terminal.
func (c *console) tail() string {
	c.mu.Lock()
	text := string(c.last)
	c.mu.Unlock()
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r >= 0xa0) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(text, "?"))
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
