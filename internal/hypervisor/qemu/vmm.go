package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/hypervisor"
)

// orphanGrace is how long a QEMU that has closed its QMP connection may take to end before it is killed.
const orphanGrace = 5 * time.Second

// vmm is one QEMU process.
type vmm struct {
	machine       hypervisor.Machine
	base          *os.File // what the guest's memory was when it was restored; nil: zeros. Closed at the end
	proc          *hostexec.Process
	stderr        *tail
	qmp           *client
	console, link net.Conn
	done          chan struct{}
	exit          hypervisor.Exit // set before done is closed

	saving sync.Mutex // held over a Save

	mu     sync.Mutex
	killed bool   // Kill was called
	broken string // why the guest was given up; empty if it was not
}

func newVMM(m hypervisor.Machine, proc *hostexec.Process, stderr *tail, qmp, console, link net.Conn) *vmm {
	v := &vmm{machine: m, proc: proc, stderr: stderr, qmp: newClient(qmp), link: link, done: make(chan struct{})}
	v.console = newWatchedConsole(console, v.giveUp)
	return v
}

// giveUp ends a guest that has lost its timer, which would hang for ever.
func (v *vmm) giveUp() {
	v.mu.Lock()
	v.broken = "the guest's kernel found no timer, for this host was too busy while it booted; boot it again"
	v.mu.Unlock()
	v.proc.Kill()
}

// reap waits for the end of the process and records how it ended.
func (v *vmm) reap() {
	select {
	case <-v.proc.Done():
	case <-v.qmp.done:
		// An orderly end closes the connection just before the process ends. Without one nobody could pause or end the
		// VM any more.
		select {
		case <-v.proc.Done():
		case <-time.After(orphanGrace):
			v.proc.Kill()
			<-v.proc.Done()
		}
	}
	if v.base != nil {
		_ = v.base.Close()
	}
	<-v.qmp.done // soon, for its other end is closed: the SHUTDOWN event may still have been on its way
	v.exit = v.conclude()
	close(v.done)
}

// conclude says how the process ended, after its end.
func (v *vmm) conclude() hypervisor.Exit {
	cause, detail := hypervisor.Crashed, "exit status 0"
	if err := v.proc.Err(); err != nil {
		detail = err.Error()
	}
	end, announced := v.qmp.ended()
	v.mu.Lock()
	killed, broken := v.killed, v.broken
	v.mu.Unlock()
	switch {
	case broken != "":
		detail = broken + ", " + detail
	case announced && end.Guest && end.Reason == "guest-shutdown":
		cause = hypervisor.GuestShutdown
	case announced && end.Guest:
		cause = hypervisor.GuestReset
	case killed:
		cause = hypervisor.Killed
	}
	if announced {
		detail = end.Reason + ", " + detail
	}
	if text := v.stderr.text(); text != "" {
		detail += ": " + text
	}
	return hypervisor.Exit{Cause: cause, Detail: detail, At: time.Now()}
}

// abandon ends a VMM whose boot has failed, and returns the reason in words.
func (v *vmm) abandon(err error) error {
	if errors.Is(err, errDisconnected) {
		// QEMU is ending by itself: let it finish saying why.
		select {
		case <-v.done:
		case <-time.After(time.Second):
		}
	}
	v.Kill()
	_ = v.console.Close()
	_ = v.link.Close()
	if errors.Is(err, errDisconnected) {
		return fault.New(fault.Internal, "QEMU ended: %s", v.exit.Detail)
	}
	return err
}

func (v *vmm) Pid() int { return v.proc.Pid() }

func (v *vmm) Link() net.Conn { return v.link }

func (v *vmm) Console() net.Conn { return v.console }

func (v *vmm) Done() <-chan struct{} { return v.done }

func (v *vmm) Exit() hypervisor.Exit {
	<-v.done
	return v.exit
}

func (v *vmm) Pause(ctx context.Context) error { return v.execute(ctx, "pause", "stop", nil, nil) }

func (v *vmm) Resume(ctx context.Context) error { return v.execute(ctx, "resume", "cont", nil, nil) }

func (v *vmm) Status(ctx context.Context) (hypervisor.Status, error) {
	var answer struct {
		Status string `json:"status"`
	}
	if err := v.execute(ctx, "ask for the status of", "query-status", nil, &answer); err != nil {
		return "", err
	}
	switch answer.Status { // RunState of qapi/run-state.json
	case "running":
		return hypervisor.Running, nil
	case "shutdown", "guest-panicked":
		return hypervisor.Stopped, nil
	default:
		return hypervisor.Paused, nil
	}
}

var _ hypervisor.DiskGrower = (*vmm)(nil)

// GrowDisk implements [hypervisor.DiskGrower]: QEMU lengthens the file by the descriptor that it has, and tells the guest.
func (v *vmm) GrowDisk(ctx context.Context, serial string, size int64) error {
	i, err := v.machine.CheckGrow(serial, size)
	if err != nil {
		return err
	}
	return v.execute(ctx, "grow disk "+serial+" of", "block_resize", struct {
		Node string `json:"node-name"`
		Size int64  `json:"size"`
	}{diskNode(i), size}, nil)
}

// execute runs a QMP command for a method of the VMM; what says in words what is being done.
func (v *vmm) execute(ctx context.Context, what, command string, arguments, result any) error {
	return v.executeWith(ctx, what, command, arguments, result, nil)
}

// executeWith is execute with a file that goes along.
func (v *vmm) executeWith(ctx context.Context, what, command string, arguments, result any, file *os.File) error {
	select {
	case <-v.done:
		return v.endedFault(what)
	default:
	}
	err := v.qmp.executeWith(ctx, command, arguments, result, file)
	if errors.Is(err, errDisconnected) {
		select {
		case <-v.done:
			return v.endedFault(what)
		case <-ctx.Done():
		}
	}
	if err != nil {
		return fmt.Errorf("%s the VM: %w", what, err)
	}
	return nil
}

func (v *vmm) endedFault(what string) error {
	return fault.New(fault.Precondition, "%s the VM: QEMU has ended (%s)", what, v.exit.Cause)
}

func (v *vmm) Kill() {
	v.mu.Lock()
	v.killed = true
	v.mu.Unlock()
	v.proc.Kill()
	<-v.done
}

// maxStderr bounds what is kept of QEMU's messages, in bytes.
const maxStderr = 2 << 10

// tail keeps the last bytes written. os/exec writes from one goroutine, which ends before the process counts as waited
// for: text may be called after that.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - maxStderr; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) text() string { return strings.TrimSpace(string(t.buf)) }
