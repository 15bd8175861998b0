package guestagent

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// mainProcess is the process that a guest was started for: its output goes to the console, and its end is the guest's.
// Its lock is held while it is being started, so that there is at most one.
type mainProcess struct {
	mu       sync.Mutex
	child    *child // nil: not started
	signal   syscall.Signal
	stopping chan struct{} // closed when the guest is to go down anyway
	finished chan struct{} // closed when the child has ended and its output is on the console
}

// startMain starts the main process, once.
func (a *Agent) startMain(spec guestproto.MainSpec) error {
	m := &a.main
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.child != nil {
		return nil
	}
	if spec.StopSignal == 0 {
		spec.StopSignal = int(unix.SIGTERM)
	}
	if err := guestproto.CheckSignal(spec.StopSignal); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	a.mu.Lock()
	env := a.env
	a.mu.Unlock()
	cmd, err := resolve(spec.Exec, env)
	if err != nil {
		return err
	}
	k, output, err := a.children.startDetached(cmd)
	if err != nil {
		return err
	}
	m.child, m.signal = k, syscall.Signal(spec.StopSignal)
	m.stopping, m.finished = make(chan struct{}), make(chan struct{})
	go a.followMain(k, output)
	return nil
}

// startDetached starts a command with no input and one pipe for all its output. A pipe and not the console itself, which
// a program of another user could not open again as /dev/stdout.
func (c *children) startDetached(cmd *command) (*child, *os.File, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "make the main process's files: %w", err)
	}
	defer null.Close() //nolint:errcheck // nothing is buffered
	r, w, err := pipe(true)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "make the main process's files: %w", err)
	}
	defer w.Close() //nolint:errcheck // the child has its own
	if cmd.cred != nil {
		_ = w.Chown(int(cmd.cred.Uid), int(cmd.cred.Gid))
	}
	k, err := c.start(cmd.path, cmd.argv, &syscall.ProcAttr{
		Dir: cmd.dir, Env: cmd.env, Files: []uintptr{null.Fd(), w.Fd(), w.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: cmd.cred},
	})
	if err != nil {
		_ = r.Close()
		return nil, nil, startError(cmd, err)
	}
	return k, r, nil
}

// followMain copies the main process's output to the console, and when it has ended takes the guest down.
func (a *Agent) followMain(k *child, output *os.File) {
	console := a.system.Console()
	defer console.Close() //nolint:errcheck // nothing is buffered
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(console, onlyReader{output}) // a console that takes no more must not stop the process
		_, _ = io.Copy(io.Discard, onlyReader{output})
	}()
	<-k.done
	// A process that it left behind may hold the output for ever.
	_ = output.SetReadDeadline(time.Now().Add(drainLimit))
	<-copied
	_ = output.Close()
	_, _ = fmt.Fprintf(console, "banger-guest: the main process %s\n", describeStatus(k.status))
	close(a.main.finished)
	select {
	case <-a.main.stopping:
	default:
		a.system.Shutdown(guestproto.ShutdownSpec{How: guestproto.PowerOff})
	}
}

func describeStatus(status syscall.WaitStatus) string {
	if status.Signaled() {
		return fmt.Sprintf("was ended by signal %d (%s)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("ended with status %d", status.ExitStatus())
}

// stop asks the main process to end, by its own signal and before all others, and waits for it.
func (m *mainProcess) stop(spec guestproto.ShutdownSpec) {
	m.mu.Lock()
	k := m.child
	if k != nil {
		select {
		case <-m.stopping:
		default:
			close(m.stopping)
		}
	}
	m.mu.Unlock()
	if k == nil {
		return
	}
	grace := defaultGrace
	if spec.MainMS > 0 {
		grace = min(time.Duration(spec.MainMS)*time.Millisecond, time.Hour)
	}
	k.signalOne(m.signal)
	k.signalOne(syscall.SIGCONT)
	select {
	case <-m.finished:
	case <-time.After(grace):
	}
}
