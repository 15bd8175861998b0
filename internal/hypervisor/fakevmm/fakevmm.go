// Package fakevmm is a hypervisor backend for tests that starts no virtual machine: the "guest" is a program on the host.
// It owns that process and the two sockets to it. It passes the same conformance suite as the real backends, so that
// what is built on a backend can be tested with it.
//
// The guest gets the link as descriptor 3, the console as descriptor 4 and as its stdout and stderr, and the network's
// socket, if there is one, as descriptor 5. Its environment says the rest (see [EnvCmdline] and [EnvDisk]). Its exit
// status says how the machine ended: 0 it was shut down, 75 ([ExitReset]) it was reset or panicked, anything else the
// VMM crashed.
//
// A VMM has one goroutine, which waits for the process and then closes Done. vmm.mu guards the flags; it is held while a
// signal is sent, which does not block. vmm.turn is held by whoever pauses, resumes or saves, for as long as that takes;
// mu may be taken while it is held.
package fakevmm

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/hypervisor"
)

// What the guest finds in its environment, beside the caller's own.
const (
	EnvID      = "FAKEVMM_ID"      // the machine's id
	EnvCmdline = "FAKEVMM_CMDLINE" // the kernel command line
	EnvDisk    = "FAKEVMM_DISK_"   // followed by a disk's serial: its path
	EnvMAC     = "FAKEVMM_MAC"     // the network device's address, if there is one
	EnvMemory  = "FAKEVMM_MEMORY"  // path of a file with the size of the guest's memory in bytes, in decimal
	EnvRan     = "FAKEVMM_RAN_MS"  // for how many milliseconds a guest that is restored has run before it was saved; else 0
)

// ExitReset is the exit status of a guest that reboots or panics (EX_TEMPFAIL of sysexits.h: try again).
const ExitReset = 75

// Faults are things that go wrong on purpose. The zero value is none.
type Faults struct {
	Boot error // Boot and Restore fail with it
	Mute bool  // the guest runs, but nothing that is written to its link arrives and it never answers
}

// Backend starts guests. It holds no state.
type Backend struct {
	command []string
	faults  Faults
}

var _ hypervisor.Backend = (*Backend)(nil)

// New returns a backend whose guests are the command (a path and its arguments).
func New(command []string, f Faults) *Backend { return &Backend{command: command, faults: f} }

// Name is "fake".
func (b *Backend) Name() string { return "fake" }

// Capabilities are those of no VMM at all.
func (b *Backend) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{Accelerator: "none", Version: "0", Pause: true, Snapshot: true, GrowDisk: true, SizeMemory: true, MaxVCPUs: 1 << 10}
}

// Boot starts the guest's program.
func (b *Backend) Boot(ctx context.Context, m hypervisor.Machine) (hypervisor.VMM, error) {
	v, err := b.launch(ctx, m, nil)
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", m.ID, err)
	}
	return v, nil
}

// launch starts a machine, paused if it is that of a snapshot.
func (b *Backend) launch(ctx context.Context, m hypervisor.Machine, from *hypervisor.Snapshot) (*vmm, error) {
	if m.NIC != nil && m.NIC.Conn != nil {
		defer m.NIC.Conn.Close() //nolint:errcheck // the guest has its own copy by then
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	disks, err := m.OpenFiles()
	if err != nil {
		return nil, err
	}
	for _, d := range disks { // the guest opens them itself
		_ = d.Close()
	}
	if b.faults.Boot != nil {
		return nil, b.faults.Boot
	}
	if len(b.command) == 0 {
		return nil, fault.New(fault.Invalid, "the fake backend has no command for its guests")
	}
	before := state{Memory: m.Memory}
	if from != nil {
		if before, err = read(m, *from); err != nil {
			return nil, err
		}
	}
	v, err := b.start(m, before)
	if err != nil {
		return nil, err
	}
	if from != nil {
		v.setPaused(true)
	}
	return v, nil
}

// start starts the guest's program, which goes on from a state.
func (b *Backend) start(m hypervisor.Machine, from state) (_ *vmm, err error) {
	v := &vmm{machine: m, done: make(chan struct{}), balloon: balloon{machine: m}, ranBefore: from.Ran, since: time.Now()}
	if err := v.balloon.set(from.Memory); err != nil {
		return nil, err
	}
	var guest []*os.File
	defer func() {
		for _, f := range guest {
			_ = f.Close()
		}
		if err != nil {
			v.closeStreams()
			v.balloon.remove()
		}
	}()
	for _, conn := range []*net.Conn{&v.link, &v.console} {
		var peer *os.File
		if *conn, peer, err = socketPair(); err != nil {
			return nil, err
		}
		guest = append(guest, peer)
	}
	if b.faults.Mute {
		// The caller's link leads to an end that nobody reads and that is closed with the VMM; the guest's leads nowhere.
		v.unread = guest[0]
		var nowhere net.Conn
		if nowhere, guest[0], err = socketPair(); err != nil {
			guest = guest[1:]
			_ = v.unread.Close()
			return nil, err
		}
		v.nowhere = nowhere
	}
	files := guest
	if m.NIC != nil {
		files = append(slices.Clip(files), m.NIC.Conn)
	}
	v.proc, err = hostexec.Start(hostexec.Cmd{
		Path: b.command[0], Args: b.command[1:], Env: environment(m, from), Dir: m.Dir,
		Stdout: guest[1], Stderr: guest[1], Files: files,
	})
	if err != nil {
		if v.unread != nil {
			_, _ = v.unread.Close(), v.nowhere.Close()
		}
		return nil, err
	}
	go v.reap()
	return v, nil
}

func environment(m hypervisor.Machine, from state) []string {
	env := append(os.Environ(), EnvID+"="+m.ID, EnvCmdline+"="+m.Cmdline, EnvMemory+"="+balloonFile(m),
		EnvRan+"="+strconv.FormatInt(from.Ran.Milliseconds(), 10))
	for _, d := range m.Disks {
		env = append(env, EnvDisk+d.Serial+"="+d.Path)
	}
	if m.NIC != nil {
		env = append(env, EnvMAC+"="+m.NIC.MAC)
	}
	return env
}

// socketPair returns a connection and the file of its other end.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	own, peer := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	defer own.Close() //nolint:errcheck // FileConn makes a copy
	conn, err := net.FileConn(own)
	if err != nil {
		_ = peer.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return conn, peer, nil
}

// vmm is one guest process.
type vmm struct {
	machine       hypervisor.Machine
	balloon       balloon
	proc          *hostexec.Process
	link, console net.Conn
	unread        *os.File // with Faults.Mute: the far end of link
	nowhere       net.Conn // with Faults.Mute: the near end of the guest's link
	done          chan struct{}
	exit          hypervisor.Exit // set before done is closed

	turn sync.Mutex

	mu        sync.Mutex
	paused    bool
	killed    bool
	ranBefore time.Duration // how long the guest had run when it last began to
	since     time.Time     // when that was; while it is paused it says nothing
}

// reap waits for the end of the guest and records how it ended.
func (v *vmm) reap() {
	<-v.proc.Done()
	if v.unread != nil {
		_, _ = v.unread.Close(), v.nowhere.Close()
	}
	v.balloon.remove()
	v.mu.Lock()
	killed := v.killed
	v.mu.Unlock()
	v.exit = hypervisor.Exit{Cause: hypervisor.Crashed, Detail: "exit status 0", At: time.Now()}
	err := v.proc.Err()
	if err != nil {
		v.exit.Detail = err.Error()
	}
	switch {
	case err == nil:
		v.exit.Cause = hypervisor.GuestShutdown
	case hostexec.ExitCode(err) == ExitReset:
		v.exit.Cause = hypervisor.GuestReset
	case killed:
		v.exit.Cause = hypervisor.Killed
	}
	close(v.done)
}

func (v *vmm) closeStreams() {
	for _, c := range []net.Conn{v.link, v.console} {
		if c != nil {
			_ = c.Close()
		}
	}
}

func (v *vmm) Pid() int { return v.proc.Pid() }

func (v *vmm) Link() net.Conn { return v.link }

func (v *vmm) Console() net.Conn { return v.console }

func (v *vmm) Done() <-chan struct{} { return v.done }

func (v *vmm) Exit() hypervisor.Exit {
	<-v.done
	return v.exit
}

func (v *vmm) Pause(ctx context.Context) error { return v.pause(ctx, "pause", true) }

func (v *vmm) Resume(ctx context.Context) error { return v.pause(ctx, "resume", false) }

func (v *vmm) pause(ctx context.Context, what string, paused bool) error {
	v.turn.Lock()
	defer v.turn.Unlock()
	if err := v.alive(ctx, what); err != nil {
		return err
	}
	v.setPaused(paused)
	return nil
}

// setPaused stops the guest or lets it go on. It may have ended.
func (v *vmm) setPaused(paused bool) {
	sig := syscall.SIGCONT
	if paused {
		sig = syscall.SIGSTOP
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.proc.Signal(sig)
	switch {
	case paused && !v.paused:
		// And a millisecond: a tick of the guest's that falls due while it stands still comes on top when it goes on.
		v.ranBefore += time.Since(v.since) + time.Millisecond
	case !paused && v.paused:
		v.since = time.Now()
	}
	v.paused = paused
}

func (v *vmm) isPaused() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.paused
}

// ran says how long a paused guest has run.
func (v *vmm) ran() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ranBefore
}

func (v *vmm) Status(ctx context.Context) (hypervisor.Status, error) {
	if err := v.alive(ctx, "ask for the status of"); err != nil {
		return "", err
	}
	if v.isPaused() {
		return hypervisor.Paused, nil
	}
	return hypervisor.Running, nil
}

var _ hypervisor.DiskGrower = (*vmm)(nil)

// GrowDisk implements [hypervisor.DiskGrower].
func (v *vmm) GrowDisk(ctx context.Context, serial string, size int64) error {
	if err := v.alive(ctx, "grow disk "+serial+" of"); err != nil {
		return err
	}
	i, err := v.machine.CheckGrow(serial, size)
	if err != nil {
		return err
	}
	if err := os.Truncate(v.machine.Disks[i].Path, size); err != nil {
		return fmt.Errorf("grow disk %s: %w", serial, err)
	}
	return nil
}

func (v *vmm) alive(ctx context.Context, what string) error {
	select {
	case <-v.done:
		return fault.New(fault.Precondition, "%s the VM: its process has ended (%s)", what, v.exit.Cause)
	default:
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s the VM: %w", what, err)
	}
	return nil
}

func (v *vmm) Kill() {
	v.mu.Lock()
	v.killed = true
	v.mu.Unlock()
	v.proc.Kill()
	<-v.done
}
