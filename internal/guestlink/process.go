package guestlink

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/yamux"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// Exit statuses of a shell for a command that did not start (POSIX, Shell Command Language, 2.8.2).
const (
	StatusNotExecutable = 126
	StatusNotFound      = 127
)

// StartStatus returns the exit status that stands for an error of Start: 127 if the command was not found (fault.NotFound),
// 126 if it can't be executed (fault.Denied), else 0: the failure is not the command's.
func StartStatus(err error) int {
	switch {
	case fault.Is(err, fault.NotFound):
		return StatusNotFound
	case fault.Is(err, fault.Denied):
		return StatusNotExecutable
	default:
		return 0
	}
}

// Process is a command that runs in a guest. Somebody must call Recv until the end: output that nobody receives makes the
// command wait, and so, after guestproto.StdinWindow bytes, does Write. Recv is for one goroutine; the others may be called
// at any time.
type Process struct {
	call *call
	pid  int

	ended bool // Recv has returned the exit

	mu     sync.Mutex
	credit int           // bytes of standard input that may be sent
	more   chan struct{} // replaced and closed when credit grows
	gone   chan struct{} // closed by Close, and when Recv fails
	once   sync.Once
}

// Start starts a command. It returns once the command runs; if the context ends, then or later, the process is abandoned as
// by Close. Besides the link's errors: fault.NotFound and fault.Denied (see StartStatus), fault.Invalid for an unknown user
// or a malformed specification, fault.Precondition for a missing directory.
func (c *Client) Start(ctx context.Context, spec guestproto.ExecSpec) (*Process, error) {
	k, err := c.call(ctx, guestproto.OpExec, spec)
	if err != nil {
		return nil, err
	}
	f, err := k.expect(guestproto.FrameStarted)
	if err != nil {
		k.close()
		return nil, err
	}
	var started guestproto.Started
	if err := f.Decode(&started); err != nil || started.Pid < 1 {
		k.close()
		return nil, k.corrupt(errors.New("bad pid"))
	}
	return &Process{
		call: k, pid: started.Pid, credit: guestproto.StdinWindow,
		more: make(chan struct{}), gone: make(chan struct{}),
	}, nil
}

// Pid is the process id in the guest.
func (p *Process) Pid() int { return p.pid }

// Recv waits for the next event. After the exit it returns io.EOF. Any other error is for good.
func (p *Process) Recv() (guestproto.ExecEvent, error) {
	if p.ended {
		return guestproto.ExecEvent{}, io.EOF
	}
	e, err := p.recv()
	if err != nil || e.Kind == guestproto.EventExit {
		p.end()
	}
	return e, err
}

func (p *Process) recv() (guestproto.ExecEvent, error) {
	for {
		f, err := p.call.next()
		if err != nil {
			return guestproto.ExecEvent{}, err
		}
		switch f.Type {
		case guestproto.FrameStdout:
			return guestproto.ExecEvent{Kind: guestproto.EventStdout, Data: f.Payload}, nil
		case guestproto.FrameStderr:
			return guestproto.ExecEvent{Kind: guestproto.EventStderr, Data: f.Payload}, nil
		case guestproto.FrameCredit:
			n, err := f.Uint32()
			if err != nil {
				return guestproto.ExecEvent{}, p.call.corrupt(err)
			}
			p.grow(n)
		case guestproto.FrameExit:
			p.ended = true
			var status guestproto.ExitStatus
			if err := errors.Join(f.Decode(&status), status.Check()); err != nil {
				return guestproto.ExecEvent{}, p.call.corrupt(err)
			}
			return guestproto.ExecEvent{Kind: guestproto.EventExit, Exit: status}, nil
		default:
			return guestproto.ExecEvent{}, p.call.unexpected(f)
		}
	}
}

// grow adds credit, at most to the full window: a guest can't make the host send more.
func (p *Process) grow(n uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.credit = int(min(int64(p.credit)+int64(n), guestproto.StdinWindow))
	close(p.more)
	p.more = make(chan struct{})
}

// take waits for credit and takes at most n bytes of it.
func (p *Process) take(n int) (int, error) {
	for {
		p.mu.Lock()
		got, more := min(n, p.credit, guestproto.MaxData), p.more
		p.credit -= got
		p.mu.Unlock()
		if got > 0 {
			return got, nil
		}
		select {
		case <-more:
		case <-p.gone:
			return 0, net.ErrClosed
		}
	}
}

// Write sends standard input. If the command reads no more, the bytes go nowhere; once Recv has returned the exit, Write
// fails.
func (p *Process) Write(b []byte) (int, error) {
	for sent := 0; ; {
		if sent == len(b) {
			return sent, nil
		}
		n, err := p.take(len(b) - sent)
		if err == nil {
			_, err = p.call.w.Data(guestproto.FrameData, b[sent:sent+n])
		}
		if err != nil {
			return sent, p.call.fail(err)
		}
		sent += n
	}
}

// CloseStdin ends standard input. On a terminal it types the end-of-file character.
func (p *Process) CloseStdin() error { return p.send(p.call.w.Frame(guestproto.FrameEOF, nil)) }

// Resize sets the size of the terminal in characters.
func (p *Process) Resize(rows, cols uint16) error {
	return p.send(p.call.w.JSON(guestproto.FrameResize, guestproto.WindowSize{Rows: rows, Cols: cols}))
}

// Signal sends a signal by its Linux number to the command's process group. A signal that comes after the end is lost.
func (p *Process) Signal(n int) error {
	if err := guestproto.CheckSignal(n); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	return p.send(p.call.w.Uint32(guestproto.FrameSignal, uint32(n))) // checked above
}

func (p *Process) send(err error) error {
	if err != nil {
		return p.call.fail(err)
	}
	return nil
}

// Close abandons the process: if it still runs, the guest hangs its process group up with SIGHUP and kills it with SIGKILL
// after a grace of two seconds.
func (p *Process) Close() error {
	p.end()
	return nil
}

func (p *Process) end() {
	p.once.Do(func() {
		close(p.gone)
		p.call.close()
	})
}

// isMuxError reports whether err is one of yamux's own.
func isMuxError(err error) bool {
	for _, e := range []error{
		yamux.ErrSessionShutdown, yamux.ErrStreamClosed, yamux.ErrConnectionReset, yamux.ErrRemoteGoAway,
		yamux.ErrStreamsExhausted, guestproto.ErrBadFrame,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
