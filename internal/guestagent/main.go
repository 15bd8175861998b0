package guestagent

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guestproto"
)

// Exit statuses of a hosted agent that was asked to go down.
const (
	exitPowerOff = 0
	exitReboot   = 75
)

// besideName is the argv[0] of the agent beside systemd. The "@" keeps systemd from killing it.
const besideName = "@banger-guest"

// Main is the whole program. It returns the exit status.
func Main(args []string) int {
	// A small heap: the guest's memory is the user's, and every page of it is in every snapshot.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(32 << 20)
	if status, is := builtinMain(args); is {
		return status
	}
	switch {
	case os.Getpid() == 1:
		return bootMain()
	case args[0] == besideName:
		return besideMain()
	case len(args) == 4 && args[1] == "-hosted" && args[2] == "-link-fd":
		return hostedMain(args[3])
	default:
		_, _ = fmt.Fprintln(os.Stderr, "banger-guest is the init of a banger microVM; for tests: -hosted -link-fd N")
		return 2
	}
}

// bootMain is process 1: it never returns, because the kernel panics if it does.
func bootMain() int {
	m := &machine{console: openConsole()}
	params, err := m.boot()
	if err == nil {
		err = m.run(params)
	}
	m.complain(err)
	m.halt(guestproto.PowerOff)
	return 1
}

// besideMain is the agent beside systemd.
func besideMain() int {
	m := &machine{console: openConsole(), systemd: true, kids: newChildren(), random: openRandom()}
	port, err := openPort(guestproto.PortName, deviceWait)
	if err == nil {
		_ = m.console.Close()
		go late()
		err = New(string(guestproto.InitSystemd), m, m.kids).Serve(context.Background(), port)
	}
	m.console = openConsole()
	m.complain(err)
	return 1
}

// hostedMain is the agent on a socket that it inherits.
func hostedMain(number string) int {
	fd, err := strconv.Atoi(number)
	if err != nil || fd < 3 {
		_, _ = fmt.Fprintln(os.Stderr, "banger-guest: bad descriptor")
		return 2
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "banger-guest: bad descriptor:", err)
		return 2
	}
	link := os.NewFile(uintptr(fd), "link")
	down := make(chan guestproto.Shutdown, 1)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- New("hosted", hosted{down}, newChildren()).Serve(ctx, link) }()
	select {
	case how := <-down:
		if how == guestproto.Reboot {
			return exitReboot
		}
		return exitPowerOff
	case err := <-served:
		if err != nil && ctx.Err() == nil {
			_, _ = fmt.Fprintln(os.Stderr, "banger-guest:", err)
			return 1
		}
		return 0
	}
}

// hosted is a System that leaves the machine alone.
type hosted struct{ down chan guestproto.Shutdown }

func (hosted) Renew(guestproto.Preamble) error    { return nil }
func (hosted) Identify(guestproto.Identity) error { return nil }

func (hosted) Console() *os.File {
	f, err := os.OpenFile("/dev/stderr", os.O_WRONLY, 0)
	if err != nil {
		f, _ = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	return f
}

// Home of a hosted agent is nowhere unless a test says where: the host's own must not be touched.
func (hosted) Home() string { return os.Getenv("BANGER_HOSTED_HOME") }

func (hosted) Grow(context.Context, guestproto.GrowSpec) error { return nil }

func (h hosted) Shutdown(spec guestproto.ShutdownSpec) {
	select {
	case h.down <- spec.How:
	default:
	}
}

// machine is the System of a real guest.
type machine struct {
	console *os.File
	systemd bool // the image's init is process 1
	kids    *children
	started time.Time
	debug   bool
	disk    *os.File // the system disk's root directory, which the new root hides; nil if there is none
	down    chan guestproto.ShutdownSpec
	random  *os.File // the kernel's random numbers, open for as long as the agent lives
}

// Home implements System.
func (*machine) Home() string { return workHome }

// Console opens the console anew: the machine's own is closed while systemd is process 1.
func (*machine) Console() *os.File { return openConsole() }

func openConsole() *os.File {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return os.Stderr
	}
	return f
}

// complain tells why the guest gives up, on the console, in one line that the host can find.
func (m *machine) complain(err error) {
	if err != nil {
		_, _ = fmt.Fprintf(m.console, "\nbanger-guest: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// stage tells how long it took to get here, if asked for.
func (m *machine) stage(name string) {
	if m.debug {
		_, _ = fmt.Fprintf(m.console, "banger-guest: %4d ms %s\n", time.Since(m.started).Milliseconds(), name)
	}
}

// Renew reseeds, and steps the clock if it is behind. A preamble may have waited for as long as the boot took, so its time
// is never a reason to step back; the clock of a guest that was restored is behind by far. A clock that can't be set is
// none to keep the guest from serving.
func (m *machine) Renew(p guestproto.Preamble) error {
	if p.TimeNS > time.Now().UnixNano() {
		_ = setClock(p.TimeNS)
	}
	return addEntropy(m.random, p.Entropy[:])
}

// Identify makes this guest what id says. It starts no process before it returns, for that takes long.
func (m *machine) Identify(id guestproto.Identity) error {
	if len(id.Entropy) > 0 {
		if err := addEntropy(m.random, id.Entropy); err != nil {
			return err
		}
	}
	if id.TimeNS != 0 {
		if err := setClock(id.TimeNS); err != nil {
			return err
		}
	}
	if err := identify("/", id.Hostname, id.MachineID); err != nil {
		return err
	}
	if id.BootID == "" {
		return nil
	}
	if err := setBootID(id.BootID); err != nil {
		return err
	}
	return m.forgetOriginal()
}

func setClock(ns int64) error {
	t := unix.NsecToTimespec(ns)
	return os.NewSyscallError("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &t))
}

// Shutdown goes down: by systemd if that is process 1, else by ourselves.
func (m *machine) Shutdown(spec guestproto.ShutdownSpec) {
	unix.Sync()
	if !m.systemd {
		select {
		case m.down <- spec:
		default:
		}
		return
	}
	// While it boots, systemd loses the signals that it does not handle yet, so it is told until it is heard. Told twice it
	// goes down once. This ends with the machine.
	go func() {
		for {
			_ = unix.Kill(1, systemdSignal(spec.How))
			time.Sleep(systemdReminder)
		}
	}()
}

// systemdReminder is how often systemd is told to go down.
const systemdReminder = 500 * time.Millisecond
