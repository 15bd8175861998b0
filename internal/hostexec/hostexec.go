// Package hostexec is the only place of the host side that starts processes. It owns how a child is started (its
// parent-death signal, its process group, the descriptors it inherits) and how its failure is told; it knows nothing
// of what the children do.
package hostexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
)

// Cmd describes one child process.
type Cmd struct {
	Path   string   // program, looked up in PATH if it has no slash
	Args   []string // arguments, without the program's name
	Env    []string // whole environment; nil: the caller's
	Dir    string   // working directory; empty: the caller's
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Files  []*os.File // inherited as descriptors 3, 4, ...
	// Detached puts the child into a session of its own, so that it outlives the caller and its terminal.
	// Without it the child is in a process group of its own and is killed when the caller dies.
	Detached bool
}

// Look returns the absolute path of a program. If there is none the error names the Debian package that has it.
func Look(program, debianPackage string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if p, e := exec.LookPath(filepath.Join(dir, program)); e == nil {
				return p, nil
			}
		}
		return "", fault.New(fault.Unsupported, "the program %s is not installed", program).
			WithHint("install it: sudo apt-get install --no-install-recommends %s", debianPackage)
	}
	return filepath.Abs(path)
}

// Become replaces this process by a program, given by its path, with the same environment and standard streams. It returns only if it
// fails.
func Become(path string, args []string) error {
	err := syscall.Exec(path, append([]string{filepath.Base(path)}, args...), os.Environ())
	return fmt.Errorf("run %s: %w", path, err)
}

// Process is a started child.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts a child. Unless it is detached, it dies with the calling process: the kernel sends it SIGKILL when the
// thread that started it ends, so the thread is kept for as long as the child lives (prctl(2), PR_SET_PDEATHSIG).
func Start(c Cmd) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...) //nolint:noctx // running programs is this package's job; ends by Kill
	cmd.Env, cmd.Dir = c.Env, c.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.ExtraFiles = c.Files
	cmd.WaitDelay = 2 * time.Second
	if c.Detached {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		if !c.Detached {
			// Never unlocked: the thread ends with this goroutine, after the child has been waited for.
			runtime.LockOSThread()
		}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return p, nil
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and has been waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns nil for exit status 0, an [*exec.ExitError] otherwise. Call it after Done.
func (p *Process) Err() error { return p.err }

// Kill kills the child's whole process group with SIGKILL; it does not wait.
func (p *Process) Kill() { p.Signal(syscall.SIGKILL) }

// Signal sends a signal to the child's process group, if the child has not been waited for yet.
func (p *Process) Signal(sig syscall.Signal) {
	select {
	case <-p.done:
		return
	default:
	}
	if err := syscall.Kill(-p.Pid(), sig); err != nil {
		_ = p.cmd.Process.Signal(sig)
	}
}

// maxStderr bounds what is kept of a failing command's messages, in bytes.
const maxStderr = 8 << 10

// Run runs a command to its end and kills it when the context ends. The error of a failing command holds the tail of
// its stderr. If c.Stdout is nil the output is discarded.
func Run(ctx context.Context, c Cmd) error {
	tail := &tailWriter{max: maxStderr}
	if c.Stderr == nil {
		c.Stderr = tail
	} else {
		c.Stderr = io.MultiWriter(c.Stderr, tail)
	}
	p, err := Start(c)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Kill()
		<-p.Done()
		return fmt.Errorf("%s: %w", filepath.Base(c.Path), context.Cause(ctx))
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("%s %s: %w%s", filepath.Base(c.Path), strings.Join(c.Args, " "), err, tail.suffix())
	}
	return nil
}

// Output is Run with the command's standard output returned.
func Output(ctx context.Context, c Cmd) ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := Run(ctx, c)
	return out.Bytes(), err
}

// ExitCode returns the exit status in an error of Run, or -1 if there is none.
func ExitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

// tailWriter keeps the last max bytes written. os/exec writes from one goroutine and ends before Wait returns.
type tailWriter struct {
	max int
	buf []byte
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tailWriter) suffix() string {
	s := strings.TrimSpace(string(t.buf))
	if s == "" {
		return ""
	}
	return ": " + s
}
