// Package hypervisortest is the conformance suite of package hypervisor: what it asserts is what a backend has to do.
// It owns a guest program (see the command in its subfolder) which speaks a small protocol over the link.
//
// It does not test what a backend promises beyond the contract, nor speed.
package hypervisortest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

// Suite is what the conformance suite needs of a backend.
type Suite struct {
	Backend func(t *testing.T) hypervisor.Backend
	// Machine returns a machine with the suite's guest, a directory of its own, and no disks.
	Machine func(t *testing.T) hypervisor.Machine
	Answer  time.Duration // within which a guest answers after Boot, and ends when told to
	Boots   int           // how often it is booted in a row
}

// Run runs the suite. The calling test must not be parallel: it counts the descriptors and children of the process.
func Run(t *testing.T, s Suite) {
	for _, c := range []struct {
		name string
		test func(Suite, *testing.T)
	}{
		{"ParentDeath", Suite.parentDeath}, // first: as a child it must not run the others
		{"LeavesNothingBehind", Suite.leavesNothingBehind},
		{"FailedBootLeavesNothingBehind", Suite.failedBoot},
		{"BootLoop", Suite.bootLoop},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(s, t) })
	}
	for _, c := range []struct {
		name string
		test func(Suite, *testing.T)
	}{
		{"Link", Suite.link},
		{"Console", Suite.console},
		{"Cmdline", Suite.cmdline},
		{"Disks", Suite.disks},
		{"GrowDisk", Suite.growDisk},
		{"SizeMemory", Suite.sizeMemory},
		{"NIC", Suite.nic},
		{"Snapshot", Suite.snapshot},
		{"RestoreOfOddities", Suite.restoreOddities},
		{"PauseResume", Suite.pauseResume},
		{"Kill", Suite.kill},
		{"KillPaused", Suite.killPaused},
		{"KillLosesNothingWritten", Suite.killLosesNothing},
		{"Causes", Suite.causes},
		{"CrashFromOutside", Suite.crash},
		{"TwoAtOnce", Suite.twoAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(s, t)
		})
	}
}

func (s Suite) link(t *testing.T) {
	g := s.boot(t, s.Machine(t))
	g.want("hello", "echo hello")
	const large = 1 << 20
	if got := g.ask("send %d", large); len(got) != large || strings.Trim(got, "x") != "" {
		t.Errorf("asked for %d bytes, got %d", large, len(got))
	}
	long := strings.Repeat("y", 32<<10)
	g.want(long, "echo %s", long)
	if caps := s.Backend(t).Capabilities(); caps.Accelerator == "" || caps.Version == "" || caps.MaxVCPUs < 1 {
		t.Errorf("Capabilities() = %+v: incomplete", caps)
	}
}

func (s Suite) console(t *testing.T) {
	g := s.boot(t, s.Machine(t))
	g.want("ok", "say to whom it may concern")
	deadline := time.Now().Add(s.Answer)
	for !strings.Contains(g.console.text(), "to whom it may concern") {
		if time.Now().After(deadline) {
			t.Fatalf("the console does not say what the guest wrote; it says %q", g.console.text())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := g.Console().Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	g.want("typed", "hear")
}

func (s Suite) cmdline(t *testing.T) {
	m := s.Machine(t)
	m.Cmdline = "suite.word=a,b suite.quoted=\"c d\""
	g := s.boot(t, m)
	if got := g.ask("cmdline"); !strings.Contains(got, m.Cmdline) {
		t.Errorf("the kernel command line is %q, want it to hold %q", got, m.Cmdline)
	}
}

func (s Suite) disks(t *testing.T) {
	m := s.Machine(t)
	m.Disks = []hypervisor.Disk{
		{Serial: "readonly", Path: newDisk(t, "of,the base\n"), ReadOnly: true},
		{Serial: "a-disk-of-20-letters", Path: newDisk(t, "second\n")},
		{Serial: "durable", Path: newDisk(t, "third\n"), Durable: true},
	}
	before := readDisk(t, m.Disks[0].Path)
	g := s.boot(t, m)
	g.want("of,the base", "read readonly")
	g.want("second", "read a-disk-of-20-letters")
	g.want("third", "read durable")
	g.want("ok", "write durable new")
	g.want("new", "read durable")
	if os.Geteuid() != 0 || s.Backend(t).Name() != "fake" { // root writes to what it likes
		if got := g.ask("write readonly x"); !strings.HasPrefix(got, "error: ") {
			t.Errorf("a write to a read-only disk answers %q", got)
		}
		if readDisk(t, m.Disks[0].Path) != before {
			t.Error("a read-only disk has changed")
		}
	}
	if got := readDisk(t, m.Disks[2].Path); !strings.HasPrefix(got, "new\n") {
		t.Errorf("the disk begins with %.20q, want what the guest synced", got)
	}
}

func (s Suite) nic(t *testing.T) {
	const mac = "02:00:00:12:34:56"
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	network, peer := os.NewFile(uintptr(fds[0]), "network"), os.NewFile(uintptr(fds[1]), "peer")
	defer network.Close() //nolint:errcheck // a test's end
	m := s.Machine(t)
	m.NIC = &hypervisor.NIC{MAC: mac, Conn: peer}
	g := s.boot(t, m)
	if _, err := peer.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Error("Boot has not closed the network's file, which it took over")
	}
	g.want("ok", "frame")
	if err := network.SetReadDeadline(time.Now().Add(s.Answer)); err != nil {
		t.Fatal(err)
	}
	for { // a kernel sends frames of its own
		f := make([]byte, 4)
		if _, err := io.ReadFull(network, f); err != nil {
			t.Fatalf("no frame arrives: %v", err)
		}
		if f = make([]byte, min(binary.BigEndian.Uint32(f), 1<<16)); len(f) < 14 {
			t.Fatalf("a frame of %d bytes", len(f))
		}
		if _, err := io.ReadFull(network, f); err != nil {
			t.Fatalf("a frame is cut short: %v", err)
		}
		if from := net.HardwareAddr(f[6:12]).String(); from != mac {
			t.Fatalf("a frame comes from %s, want %s", from, mac)
		}
		if bytes.HasPrefix(f[14:], []byte("frame")) {
			return
		}
	}
}

func (s Suite) pauseResume(t *testing.T) {
	g := s.boot(t, s.Machine(t))
	const pause = time.Second
	wantStatus := func(want hypervisor.Status) {
		t.Helper()
		if got, err := g.Status(t.Context()); got != want || err != nil {
			t.Fatalf("Status() = %s, %v, want %s", got, err, want)
		}
	}
	do := func(what string, act func(context.Context) error) {
		t.Helper()
		if err := act(t.Context()); err != nil {
			t.Fatalf("%s() = %v", what, err)
		}
	}
	wantStatus(hypervisor.Running)
	do("Resume", g.Resume)
	first := g.count()
	do("Pause", g.Pause)
	do("Pause", g.Pause)
	wantStatus(hypervisor.Paused)
	g.tell("echo while paused")
	if err := g.Link().SetReadDeadline(time.Now().Add(pause)); err != nil {
		t.Fatal(err)
	}
	if line, err := g.lines.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a paused guest answers %q, %v", line, err)
	}
	do("Resume", g.Resume)
	do("Resume", g.Resume)
	wantStatus(hypervisor.Running)
	if got := g.hear(); got != "while paused" {
		t.Errorf("after the pause the guest answers %q", got)
	}
	second := g.count()
	if passed := time.Duration(second-first) * time.Millisecond; passed > pause/2 {
		t.Errorf("the guest counted %v in a pause of %v", passed, pause)
	}
	time.Sleep(200 * time.Millisecond)
	if third := g.count(); third <= second {
		t.Errorf("the count stands at %d after a resume", third)
	}
}

func (s Suite) kill(t *testing.T) {
	g := s.boot(t, s.Machine(t))
	pid := g.Pid()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(g.Kill)
	}
	wg.Wait()
	g.Kill()
	select {
	case <-g.Done():
	default:
		t.Error("Done is open after Kill")
	}
	if got := g.Exit(); got.Cause != hypervisor.Killed || got.Detail == "" || got.At.IsZero() {
		t.Errorf("Exit() = %+v, want cause %s, a detail and a time", got, hypervisor.Killed)
	}
	if alive(pid) {
		t.Errorf("process %d lives after Kill", pid)
	}
	wantEnded(t, g)
}

func wantEnded(t *testing.T, g *guest) {
	t.Helper()
	_, err := g.Status(t.Context())
	for what, err := range map[string]error{"Pause": g.Pause(t.Context()), "Resume": g.Resume(t.Context()), "Status": err} {
		if !fault.Is(err, fault.Precondition) {
			t.Errorf("%s() after the end = %v, want a fault of kind %s", what, err, fault.Precondition)
		}
	}
	if _, err := g.lines.ReadString('\n'); err == nil {
		t.Error("the link has not ended with the VMM")
	}
}

func (s Suite) killPaused(t *testing.T) {
	g := s.start(t, s.Machine(t))
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Kill()
	if got := g.Exit().Cause; got != hypervisor.Killed {
		t.Errorf("cause = %s, want %s", got, hypervisor.Killed)
	}
}

func (s Suite) killLosesNothing(t *testing.T) {
	m := s.Machine(t)
	path := newDisk(t, "old\n")
	m.Disks = []hypervisor.Disk{{Serial: "work", Path: path}}
	g := s.boot(t, m)
	g.want("ok", "write work synced")
	g.Kill()
	if got := readDisk(t, path); !strings.HasPrefix(got, "synced\n") {
		t.Errorf("the disk begins with %.20q, want what the guest synced before the kill", got)
	}
}

func (s Suite) causes(t *testing.T) {
	for how, want := range map[string]hypervisor.Cause{
		"shutdown": hypervisor.GuestShutdown, "reboot": hypervisor.GuestReset, "panic": hypervisor.GuestReset,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			g := s.boot(t, s.Machine(t))
			g.tell("%s", how)
			if got := g.wait(); got.Cause != want {
				t.Errorf("Exit() = %+v, want cause %s", got, want)
			}
			wantEnded(t, g)
		})
	}
}

func (s Suite) crash(t *testing.T) {
	g := s.start(t, s.Machine(t))
	if err := syscall.Kill(g.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := g.wait(); got.Cause != hypervisor.Crashed || !strings.Contains(got.Detail, "killed") {
		t.Errorf("Exit() = %+v, want cause %s and the signal", got, hypervisor.Crashed)
	}
	g.Kill() // still idempotent, and changes no cause
	if got := g.Exit().Cause; got != hypervisor.Crashed {
		t.Errorf("cause after Kill = %s", got)
	}
}

func (s Suite) twoAtOnce(t *testing.T) {
	first, second := s.boot(t, s.Machine(t)), s.boot(t, s.Machine(t))
	first.tell("echo one")
	second.tell("echo two")
	if one, two := first.hear(), second.hear(); one != "one" || two != "two" {
		t.Errorf("the guests answer %q and %q", one, two)
	}
	first.Kill()
	second.want("alive", "echo alive")
}

func (s Suite) bootLoop(t *testing.T) {
	for i := range s.Boots {
		if !t.Run(fmt.Sprint(i), func(t *testing.T) { s.boot(t, s.Machine(t)) }) {
			return
		}
	}
}

// newDisk returns the path of a disk of 1 MiB that begins with a text. Its name has a comma, which some VMMs mind.
func newDisk(t *testing.T, text string) string {
	t.Helper()
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	path := filepath.Join(t.TempDir(), "disk,"+hex.EncodeToString(b))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

func readDisk(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
