package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

const (
	// patience is how long after a signal that the guest ignored a second one of its kind gives up.
	patience = 5 * time.Second
	// together is within what time two signals of a kind are one: timeout(1) sends to the process and to its group, and nobody
	// presses Ctrl-C so fast.
	together = 50 * time.Millisecond
	// removal bounds the wait for `run --rm` to delete the VM after its command has ended; the daemon gives up sooner.
	removal = 75 * time.Second
	// inputBlock is the most that is read from standard input at once, in bytes.
	inputBlock = 32 << 10
)

// attachStream is the client's end of Run and Exec.
type attachStream = connect.BidiStreamForClient[bangerv1.AttachRequest, bangerv1.AttachResponse]

// session is a command in a guest, attached to this process's standard streams. Its main goroutine receives; one
// goroutine sends; one, from the command's start on, reads standard input.
//
// Before the command has started, signals have their default effect: they cancel the operation. Then they are
// forwarded to the command.
type session struct {
	app     *app
	display *display
	start   *bangerv1.AttachStart
	onVM    func(*bangerv1.VM) // Run: the VM is up

	stream *attachStream
	urgent chan *bangerv1.AttachRequest // signals and resizes: they go before input
	send   chan *bangerv1.AttachRequest // input
	credit *rpcclient.Credit
	cancel context.CancelCauseFunc
	raw    *rawMode
	up     time.Time // when the VM was up; zero: it was before

	reacted  atomic.Bool // the guest has said something since the last signal
	lastSig  syscall.Signal
	lastTime time.Time
	restore  func() // of the signals
}

// run attaches until the command has ended. It returns an exitStatus unless the command succeeded.
func (s *session) run(ctx context.Context, open func(context.Context) *attachStream) error {
	ctx, s.cancel = context.WithCancelCause(ctx)
	defer s.cancel(context.Canceled)
	s.urgent, s.send = make(chan *bangerv1.AttachRequest, 64), make(chan *bangerv1.AttachRequest)
	s.credit = rpcclient.NewCredit()
	s.stream = open(ctx)
	defer func() {
		s.raw.restore()
		if s.restore != nil {
			s.restore()
		}
		s.display.erase()
	}()
	if err := s.stream.Send(&bangerv1.AttachRequest{
		Kind: &bangerv1.AttachRequest_Start{Start: s.start},
	}); err != nil && !errors.Is(err, io.EOF) { // after an end of stream, receiving says why
		return s.explain(ctx, err)
	}
	status, err := s.receive(ctx)
	if err != nil {
		return s.explain(ctx, err)
	}
	if !s.up.IsZero() {
		s.display.record("command", time.Since(s.up))
	}
	s.finish()
	switch code := status.GetCode(); {
	case code == 0:
		return nil
	case code < 0 || code > 255: // no process ends so, but a guest can say anything
		return exitStatus(255)
	default:
		return exitStatus(code)
	}
}

// explain prefers the reason for which the session was cancelled to what the transport made of it.
func (s *session) explain(ctx context.Context, err error) error {
	s.display.keep() // shows the stage that failed, if it came to that
	if sig, ok := errors.AsType[*signalError](context.Cause(ctx)); ok {
		return sig
	}
	return err
}

// receive is the main loop.
func (s *session) receive(ctx context.Context) (*bangerv1.ExitStatus, error) {
	for {
		msg, err := s.stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil, fault.New(fault.Unavailable, "the daemon ended the session without the command's exit status").
				WithHint("see its log: banger daemon logs")
		case err != nil:
			return nil, err
		}
		switch kind := msg.GetKind().(type) {
		case *bangerv1.AttachResponse_Progress:
			s.display.update("", kind.Progress)
		case *bangerv1.AttachResponse_Vm:
			s.up = time.Now()
			if s.onVM != nil {
				s.onVM(kind.Vm)
			}
		case *bangerv1.AttachResponse_Started:
			err = s.started(ctx)
		case *bangerv1.AttachResponse_StdinCredit:
			s.credit.Grow(kind.StdinCredit)
		case *bangerv1.AttachResponse_Stdout:
			s.reacted.Store(true)
			_, err = s.app.sys.Stdout.Write(kind.Stdout)
		case *bangerv1.AttachResponse_Stderr:
			s.reacted.Store(true)
			_, err = s.app.sys.Stderr.Write(kind.Stderr)
		case *bangerv1.AttachResponse_Exit:
			return kind.Exit, nil
		}
		if err != nil {
			return nil, fmt.Errorf("pass on the command's output: %w", err)
		}
	}
}

// started takes over terminal and signals for the command that now runs.
func (s *session) started(ctx context.Context) error {
	if s.restore != nil {
		return fault.New(fault.Corrupt, "the daemon says twice that the command has started")
	}
	s.display.erase()
	tty := s.start.GetExec().GetTty()
	if tty {
		raw, err := makeRaw(s.app.sys.Stdin)
		if err != nil {
			return err
		}
		s.raw = raw
	}
	s.restore = s.app.signals.divert(s.signal)
	go s.sender(ctx)
	if tty {
		s.resize() // it may have changed since the start was sent
	}
	if s.start.GetExec().GetStdin() {
		go s.input(ctx)
	}
	return nil
}

// signal forwards one signal; it runs on the goroutine that takes signals.
func (s *session) signal(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGWINCH:
		if s.start.GetExec().GetTty() {
			s.resize()
		}
		return true
	case syscall.SIGPIPE:
		return true
	default: // for the command
	}
	now := time.Now()
	if sig == s.lastSig && now.Sub(s.lastTime) < together {
		return true
	}
	if sig == s.lastSig && now.Sub(s.lastTime) < patience && !s.reacted.Load() {
		s.cancel(&signalError{sig})
		return true
	}
	s.lastSig, s.lastTime = sig, now
	s.reacted.Store(false)
	s.offer(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Signal{Signal: int32(sig)}}) // 1 to 64
	return true
}

func (s *session) resize() {
	if size := windowSize(s.app.sys.Stdin); size != nil {
		s.offer(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Resize{Resize: size}})
	}
}

// offer queues a message if there is room. There is none only if the daemon takes nothing any more.
func (s *session) offer(msg *bangerv1.AttachRequest) {
	select {
	case s.urgent <- msg:
	default:
	}
}

// sender is the only one that sends after the start.
func (s *session) sender(ctx context.Context) {
	defer s.raw.restoreInPanic()
	for {
		var msg *bangerv1.AttachRequest
		select {
		case msg = <-s.urgent:
		default:
			select {
			case msg = <-s.urgent:
			case msg = <-s.send:
			case <-ctx.Done():
				return
			}
		}
		if s.stream.Send(msg) != nil {
			return // receiving says why
		}
	}
}

// input passes standard input on until its end. It reads what the daemon has given credit for and no more, so that what the
// command does not read lies in front of no signal.
func (s *session) input(ctx context.Context) {
	defer s.raw.restoreInPanic()
	post := func(msg *bangerv1.AttachRequest) bool {
		select {
		case s.send <- msg:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		room, ok := s.credit.Wait(ctx)
		if !ok {
			return
		}
		buf := make([]byte, min(inputBlock, room)) // the sender still has the one before
		n, err := s.app.sys.Stdin.Read(buf)
		s.credit.Use(n)
		if n > 0 && !post(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Stdin{Stdin: buf[:n]}}) {
			return
		}
		if err != nil {
			// An unreadable input, such as a closed descriptor, is an empty one.
			post(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_CloseStdin{CloseStdin: true}})
			return
		}
	}
}

// finish waits for what the daemon still does after the command's end: the removal of the VM of `run --rm`.
func (s *session) finish() {
	s.raw.restore()
	if !s.start.GetRemove() {
		return
	}
	if s.restore != nil {
		s.restore()
		s.restore = nil
	}
	began := time.Now()
	defer func() { s.display.record("delete", time.Since(began)) }()
	timer := time.AfterFunc(removal, func() { s.cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	for {
		_, err := s.stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil: // the command's own status counts, but nobody shall believe that the VM is gone
			s.app.sayError(fmt.Errorf("delete the VM: %w", err))
			return
		}
	}
}

// ttyChoice is what -t and -T ask for.
type ttyChoice struct{ force, never bool }

// wantTTY decides whether the command gets a terminal: if standard input and output both are one, unless forced.
func (a *app) wantTTY(c ttyChoice) (bool, error) {
	switch {
	case c.force && c.never:
		return false, usagef("-t and -T exclude each other")
	case c.never:
		return false, nil
	case c.force && !isTerminal(a.sys.Stdin):
		return false, usagef("the input is not a terminal").withHint("leave -t out, or run it in a terminal")
	case c.force:
		return true, nil
	}
	return isTerminal(a.sys.Stdin) && isTerminal(a.sys.Stdout) && isForeground(a.sys.Stdin), nil
}

// execSpec describes a command that is attached to this process.
func (a *app) execSpec(args, env []string, user, dir string, choice ttyChoice) (*bangerv1.ExecSpec, error) {
	tty, err := a.wantTTY(choice)
	if err != nil {
		return nil, err
	}
	e := &bangerv1.ExecSpec{Args: args, Env: env, User: user, Dir: dir, Tty: tty}
	// In the background a read from the terminal would stop us, and the command with us.
	e.Stdin = a.sys.Stdin != nil && (!isTerminal(a.sys.Stdin) || isForeground(a.sys.Stdin))
	if tty {
		e.Size, e.Term = windowSize(a.sys.Stdin), a.env("TERM")
	}
	return e, nil
}
