package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	bangerv1 "banger/internal/gen/banger/v1"
)

// user is a person at a terminal.
type user struct {
	t        *testing.T
	keyboard *os.File // the master side
	terminal *os.File // what the program has

	mu     sync.Mutex
	screen strings.Builder
	seen   chan struct{} // something was shown
}

// newUser makes a terminal of 24x80 whose output goes to the user's screen.
func newUser(t *testing.T, b *bench) *user {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	master = pollable(t, master)
	u := &user{t: t, keyboard: master, terminal: slave, seen: make(chan struct{}, 1)}
	u.setSize(24, 80)
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			u.mu.Lock()
			u.screen.Write(buf[:n])
			u.mu.Unlock()
			select {
			case u.seen <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	})
	// In this order: the master's end ends a read from the slave that a session left behind.
	t.Cleanup(func() { _ = master.Close(); done.Wait(); _ = slave.Close() })
	b.stdin, b.stdout, b.stderr = slave, slave, slave
	return u
}

// pollable makes a file whose Close ends a Read in progress; package pty makes files that block.
func pollable(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := f.Name()
	_ = f.Close()
	return os.NewFile(uintptr(fd), name)
}

func (u *user) setSize(rows, cols uint16) {
	if err := pty.Setsize(u.terminal, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		u.t.Fatal(err)
	}
}

// shown is all that was ever written to the terminal.
func (u *user) shown() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.screen.String()
}

func (u *user) types(text string) {
	if _, err := io.WriteString(u.keyboard, text); err != nil {
		u.t.Error(err)
	}
}

// sees waits until a text is on the screen.
func (u *user) sees(text string) {
	u.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		if strings.Contains(u.shown(), text) {
			return
		}
		select {
		case <-u.seen:
		case <-deadline:
			u.t.Errorf("%q is not on the screen: %q", text, u.shown())
			return
		}
	}
}

func (u *user) isRaw() bool {
	u.t.Helper()
	attributes, err := unix.IoctlGetTermios(int(u.terminal.Fd()), unix.TCGETS)
	if err != nil {
		u.t.Error(err)
		return false
	}
	return attributes.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0
}

func TestTerminalSession(t *testing.T) {
	t.Parallel()
	var u *user
	var b *bench
	wasRaw := false
	b = newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		e := s.start.GetExec()
		if !e.GetTty() || e.GetTerm() != "xterm" || e.GetSize().GetRows() != 24 || e.GetSize().GetCols() != 80 {
			return errors.New("a wrong start: " + e.String())
		}
		if err := s.started(); err != nil {
			return err
		}
		typed := ""
		for resized := 0; ; {
			m, err := s.Receive()
			if err != nil {
				return err
			}
			switch k := m.GetKind().(type) {
			case *bangerv1.AttachRequest_Resize:
				resized++
				switch {
				case resized == 1: // on entering
					u.setSize(30, 100)
					b.signals <- syscall.SIGWINCH
				case k.Resize.GetRows() == 30 && k.Resize.GetCols() == 100:
					wasRaw = u.isRaw()
					u.types("\x03\x1d!") // Ctrl-C is a byte like any other
				}
			case *bangerv1.AttachRequest_Stdin:
				if typed += string(k.Stdin); typed == "\x03\x1d!" {
					return errors.Join(s.stdout("bye\r\n"), s.exit(5))
				}
			}
		}
	}})
	u = newUser(t, b)
	if r := b.run("exec", "box"); r.status != 5 {
		t.Errorf("status %d", r.status)
	}
	u.sees("bye")
	if !wasRaw {
		t.Error("the terminal was not raw while the command ran")
	}
	if u.isRaw() {
		t.Error("the terminal is still raw")
	}
}

func TestTerminalIsRestored(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*bench, *attached) error{
		"error": func(*bench, *attached) error { return errors.New("boom") },
		"signals": func(b *bench, s *attached) error {
			for {
				m, err := s.Receive()
				if err != nil {
					return err
				}
				if m.GetResize() != nil || m.GetSignal() != 0 { // entered, then once forwarded
					b.signals <- syscall.SIGTERM
					time.Sleep(2 * together) // the next is another
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b *bench
			b = newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
				if err := s.started(); err != nil {
					return err
				}
				return end(b, s)
			}})
			u := newUser(t, b)
			want := map[string]int{"error": 125, "signals": 143}[name]
			if r := b.run("exec", "-it", "box"); r.status != want {
				t.Errorf("status %d, want %d", r.status, want)
			}
			if u.isRaw() {
				t.Error("the terminal is still raw")
			}
		})
	}
}

func TestRestoreInPanic(t *testing.T) {
	t.Parallel()
	u := newUser(t, &bench{})
	raw, err := makeRaw(u.terminal)
	if err != nil {
		t.Fatal(err)
	}
	if !u.isRaw() {
		t.Fatal("not raw")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		defer raw.restoreInPanic()
		panic("defect")
	}()
	if u.isRaw() {
		t.Error("the terminal is still raw")
	}
}

func TestNoTerminal(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		if s.start.GetExec().GetTty() {
			return errors.New("-T gives a terminal")
		}
		return errors.Join(s.started(), s.exit(0))
	}})
	newUser(t, b)
	if r := b.run("exec", "-T", "box", "--", "x"); r.status != 0 {
		t.Errorf("status %d", r.status)
	}
	b.stdout = io.Discard // an output that is no terminal: none is given, unless forced
	if r := b.run("exec", "box", "--", "x"); r.status != 0 {
		t.Errorf("status %d", r.status)
	}
}

func TestRunNotes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args  string
		notes bool
		stays bool
	}{
		{"run", true, true},
		{"run --rm", true, false},
		{"run --quiet", false, false},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
				return errors.Join(s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Vm{Vm: &bangerv1.VM{
					Name: "box", Backend: "qemu", Accelerator: "tcg",
					Spec: &bangerv1.Spec{Image: "debian", Vcpus: 2, Memory: 1 << 30, DiskSize: 8 << 30, Net: "user"},
				}}}), s.started(), s.exit(0))
			}})
			u := newUser(t, b)
			if r := b.run(strings.Fields(tc.args)...); r.status != 0 {
				t.Errorf("status %d", r.status)
			}
			_, _ = io.WriteString(u.terminal, "END")
			u.sees("END")
			screen := u.shown()
			spec := "banger: box: debian, 2 vCPUs, 1GiB memory, 8GiB disk, network user, qemu (tcg)"
			if strings.Contains(screen, spec) != tc.notes {
				t.Errorf("the specification is shown: %v, want %v: %q", !tc.notes, tc.notes, screen)
			}
			if strings.Contains(screen, "still running") != tc.stays {
				t.Errorf("that it stays is said: %v, want %v: %q", !tc.stays, tc.stays, screen)
			}
		})
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	got := make(chan string, 1)
	b := newBench(t, &fakeDaemon{console: func(s *connect.BidiStream[bangerv1.ConsoleRequest, bangerv1.ConsoleResponse]) error {
		defer close(gone)
		if m, err := s.Receive(); err != nil || m.GetVm() != "box" {
			return errors.New("a wrong start")
		}
		if err := s.Send(&bangerv1.ConsoleResponse{Output: []byte("login: ")}); err != nil {
			return err
		}
		input := ""
		for {
			m, err := s.Receive()
			if err != nil {
				got <- input
				return err
			}
			input += string(m.GetInput())
		}
	}})
	u := newUser(t, b)
	go func() {
		u.sees("Ctrl-] leaves")
		u.sees("login: ")
		u.types("ro\x03ot")
		time.Sleep(50 * time.Millisecond)
		u.types("x\x1drest")
	}()
	if r := b.run("vm", "console", "box"); r.status != 0 {
		t.Errorf("status %d", r.status)
	}
	u.sees("left the console of box")
	if u.isRaw() {
		t.Error("the terminal is still raw")
	}
	<-gone
	if input := <-got; !strings.HasPrefix("ro\x03otx", input) || input == "" {
		t.Errorf("the guest got %q", input)
	}
}

func TestConsoleOfPipes(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{console: func(s *connect.BidiStream[bangerv1.ConsoleRequest, bangerv1.ConsoleResponse]) error {
		for {
			m, err := s.Receive()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := s.Send(&bangerv1.ConsoleResponse{Output: m.GetInput()}); err != nil {
				return err
			}
		}
	}})
	b.stdin = strings.NewReader("a\x1db")
	b.run("vm", "console", "box").want(t, 0, "a\x1db", "")
}
