package guestagent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// What happens to output that is still open when the command has ended, because a process it left behind holds it. All
// that the command itself wrote is in the pipe by then, and a pipe holds at most pipeSize. So the rest is read until
// nothing comes for drainIdle; if a left-behind process never falls silent, until more than a pipe's worth has come and
// drainLimit has passed. sshd would wait for ever here.
const (
	drainIdle  = 100 * time.Millisecond
	drainLimit = time.Second
	pipeSize   = 256 << 10 // bytes; four times the default saves a busy command many switches to the agent and back
)

// hangupGrace is the time between SIGHUP and SIGKILL for a command that the host abandoned.
const hangupGrace = 2 * time.Second

// execution is a command that runs for the host.
type execution struct {
	s       *stream
	child   *child
	stdin   *os.File // nil: none
	outputs []output
	tty     *os.File // the terminal's master side, nil without one; then stdin and the only output are it
	inbox   *inbox
	ended   atomic.Bool   // the command has ended, the outputs are being drained
	gone    chan struct{} // closed when the host has given the stream up
}

type output struct {
	file *os.File
	typ  guestproto.FrameType
}

// exec runs a command until it has ended and its output is sent, or until the host abandons it.
func (a *Agent) exec(ctx context.Context, s *stream, spec guestproto.ExecSpec) error {
	a.mu.Lock()
	env := a.env
	a.mu.Unlock()
	cmd, err := resolve(spec, env)
	if err != nil {
		return err
	}
	e := &execution{s: s, inbox: newInbox(), gone: make(chan struct{})}
	files, err := e.open(spec, cmd)
	defer e.close()
	if err != nil {
		closeAll(files)
		return fault.New(fault.Internal, "make the command's files: %w", err)
	}
	attr := &syscall.ProcAttr{Dir: cmd.dir, Env: cmd.env, Sys: &syscall.SysProcAttr{Setsid: true, Credential: cmd.cred}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	attr.Sys.Setctty = e.tty != nil // descriptor 0
	e.child, err = a.children.start(cmd.path, cmd.argv, attr)
	closeAll(files)
	if err != nil {
		return startError(cmd, err)
	}
	if err := s.w.JSON(guestproto.FrameStarted, guestproto.Started{Pid: e.child.pid}); err != nil {
		e.hangUp()
		return nil //nolint:nilerr // nobody is left to tell
	}
	status, ok := e.run(ctx)
	if !ok {
		return nil
	}
	return s.w.JSON(guestproto.FrameExit, status)
}

// run moves bytes until the command has ended. It reports false if the host went away.
func (e *execution) run(ctx context.Context) (guestproto.ExitStatus, bool) {
	go e.receive()
	if e.stdin != nil {
		go e.feed()
	}
	var forwarding sync.WaitGroup
	for _, o := range e.outputs {
		forwarding.Go(func() { e.forward(o) })
	}
	select {
	case <-e.child.done:
	case <-e.gone:
		e.hangUp()
		return guestproto.ExitStatus{}, false
	case <-ctx.Done():
		e.hangUp()
		return guestproto.ExitStatus{}, false
	}
	e.ended.Store(true)
	for _, o := range e.outputs {
		_ = o.file.SetReadDeadline(time.Now().Add(drainIdle))
	}
	forwarding.Wait()
	status := guestproto.ExitStatus{Code: e.child.status.ExitStatus()}
	if e.child.status.Signaled() {
		status.Signal = int(e.child.status.Signal())
		status.Code = 128 + status.Signal
	}
	return status, true
}

// forward sends one output until it ends. A read waits for nobody but the command; a write waits for the host.
func (e *execution) forward(o output) {
	buf := make([]byte, guestproto.MaxData)
	var drained int
	var since time.Time
	for {
		n, err := o.file.Read(buf)
		if n > 0 {
			if _, err := e.s.w.Data(o.typ, buf[:n]); err != nil {
				_ = o.file.Close() // the command gets SIGPIPE
				return
			}
		}
		if err != nil { // the end, EIO from a terminal that nobody holds any more, or the deadline
			return
		}
		if !e.ended.Load() {
			continue
		}
		if since.IsZero() {
			since = time.Now()
		}
		if drained += n; drained > pipeSize && time.Since(since) > drainLimit {
			return
		}
		_ = o.file.SetReadDeadline(time.Now().Add(drainIdle))
	}
}

// receive takes what the host sends. It never waits for the command, so that signals and the end of the stream get through.
func (e *execution) receive() {
	defer close(e.gone)
	defer e.inbox.abort()
	for {
		f, err := e.s.r.Next(guestproto.MaxPayload)
		if err != nil {
			return
		}
		switch f.Type {
		case guestproto.FrameData:
			if !e.inbox.put(f.Payload) {
				return
			}
		case guestproto.FrameEOF:
			e.inbox.end()
		case guestproto.FrameSignal:
			n, err := f.Uint32()
			if err != nil || guestproto.CheckSignal(int(n)) != nil {
				return
			}
			e.child.signal(syscall.Signal(n))
		case guestproto.FrameResize:
			var size guestproto.WindowSize
			if f.Decode(&size) != nil {
				return
			}
			if e.tty != nil {
				_ = setSize(e.tty, size)
			}
		default:
			return
		}
	}
}

// feed writes standard input to the command and gives the host credit for what was taken. Once the command takes no more,
// the rest is dropped, so that the host doesn't wait.
func (e *execution) feed() {
	buf := make([]byte, guestproto.MaxPayload)
	broken := false
	for {
		n, err := e.inbox.take(buf)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return // close closes the file
			}
			if e.tty != nil {
				_, _ = e.tty.Write(endOfFile(e.tty))
			} else {
				_ = e.stdin.Close()
			}
			return
		}
		if !broken {
			_, err = e.stdin.Write(buf[:n])
			broken = err != nil
		}
		if e.s.w.Uint32(guestproto.FrameCredit, uint32(n)) != nil { // at most MaxPayload
			return
		}
	}
}

// hangUp ends an abandoned command: SIGHUP, as from a lost terminal, and after a grace SIGKILL. A process that left the
// process group, as daemons do, stays.
func (e *execution) hangUp() {
	_ = e.s.conn.Close()
	e.child.signal(syscall.SIGHUP)
	e.child.signal(syscall.SIGCONT)
	for _, o := range e.outputs {
		_ = o.file.Close() // so that its writers see the end, too
	}
	select {
	case <-e.child.done:
	case <-time.After(hangupGrace):
		e.child.signal(syscall.SIGKILL)
		<-e.child.done
	}
}

// open makes the command's standard files and returns its ends of them.
func (e *execution) open(spec guestproto.ExecSpec, cmd *command) ([]*os.File, error) {
	if spec.TTY {
		master, slave, err := openTerminal(cmd, guestproto.WindowSize{Rows: spec.Rows, Cols: spec.Cols})
		if err != nil {
			return nil, err
		}
		e.tty, e.stdin, e.outputs = master, master, []output{{master, guestproto.FrameStdout}}
		return []*os.File{slave, slave, slave}, nil
	}
	var files []*os.File
	if spec.Stdin {
		r, w, err := pipe(false)
		if err != nil {
			return files, err
		}
		e.stdin, files = w, append(files, r)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return files, err
		}
		files = append(files, null)
	}
	for _, typ := range []guestproto.FrameType{guestproto.FrameStdout, guestproto.FrameStderr} {
		r, w, err := pipe(true)
		if err != nil {
			return files, err
		}
		if cmd.cred != nil { // or it could not open /dev/stdout
			_ = w.Chown(int(cmd.cred.Uid), int(cmd.cred.Gid))
		}
		e.outputs, files = append(e.outputs, output{r, typ}), append(files, w)
	}
	return files, nil
}

func (e *execution) close() {
	e.inbox.abort()
	if e.stdin != nil {
		_ = e.stdin.Close()
	}
	for _, o := range e.outputs {
		_ = o.file.Close()
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// pipe makes a pipe of which only the agent's end is non-blocking: many programs can't handle that in theirs.
func pipe(agentReads bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	ours := fds[1]
	if agentReads {
		ours = fds[0]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	_, _ = unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, pipeSize) // may be refused: then it has 64 KiB, pipe(7)
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// inbox is standard input that the command has not taken yet.
type inbox struct {
	mu     sync.Mutex
	change sync.Cond
	buf    bytes.Buffer
	err    error // io.EOF: no more comes; else: given up
}

func newInbox() *inbox {
	b := &inbox{}
	b.change.L = &b.mu
	return b
}

// put adds bytes. It reports false if the host overran its credit.
func (b *inbox) put(p []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len()+len(p) > guestproto.StdinWindow {
		return false
	}
	if b.err == nil {
		b.buf.Write(p)
		b.change.Signal()
	}
	return true
}

func (b *inbox) end()   { b.finish(io.EOF) }
func (b *inbox) abort() { b.finish(os.ErrClosed) }

func (b *inbox) finish(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil || errors.Is(b.err, io.EOF) {
		b.err = err
	}
	b.change.Signal()
}

// take waits for bytes and takes some. At the end it returns io.EOF.
func (b *inbox) take(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.buf.Len() == 0 && b.err == nil {
		b.change.Wait()
	}
	if b.err != nil && (b.buf.Len() == 0 || !errors.Is(b.err, io.EOF)) {
		return 0, b.err
	}
	return b.buf.Read(p)
}
