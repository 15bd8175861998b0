package hypervisortest

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/hostexec"
	"banger/internal/hypervisor"
)

// BuildGuest compiles the suite's guest, a static program, and returns its path. Everywhere but as process 1 it is a
// guest for package fakevmm.
func BuildGuest(t *testing.T) string {
	t.Helper()
	gobin, err := hostexec.Look("go", "golang-go")
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "guest")
	err = hostexec.Run(t.Context(), hostexec.Cmd{
		Path: "/usr/bin/env",
		Args: []string{
			"CGO_ENABLED=0", gobin, "build", "-ldflags=-s -w", "-o", path, "banger/internal/hypervisor/hypervisortest/guest",
		},
	})
	if err != nil {
		t.Fatalf("build the guest: %v", err)
	}
	return path
}

// guest is a booted machine as the suite sees it.
type guest struct {
	hypervisor.VMM
	t       *testing.T
	answer  time.Duration
	lines   *bufio.Reader
	console *transcript
}

// attempts is how often a machine is booted whose VMM gives it up before it answers: a host may be too busy for a guest
// to boot, which no backend can help.
const attempts = 3

// boot boots a machine and waits for its guest.
func (s Suite) boot(t *testing.T, m hypervisor.Machine) *guest {
	t.Helper()
	for attempt := 1; ; attempt++ {
		g := s.start(t, m)
		g.tell("echo ready") // written long before the guest listens
		answer, err := g.receive()
		if err == nil && answer == "ready" {
			return g
		}
		if attempt == attempts || m.NIC != nil || !g.gaveUp() { // the network's socket serves one boot
			t.Fatalf("the guest answers %q, %v, want %q", answer, err, "ready")
		}
		t.Logf("boot it again: %+v", g.Exit())
		g.end()
	}
}

// start boots a machine. What is left of it goes away with the test.
func (s Suite) start(t *testing.T, m hypervisor.Machine) *guest {
	t.Helper()
	vmm, err := s.Backend(t).Boot(t.Context(), m)
	if err != nil {
		t.Fatalf("Boot() = %v", err)
	}
	return s.adopt(t, vmm)
}

// adopt takes over a VMM.
func (s Suite) adopt(t *testing.T, vmm hypervisor.VMM) *guest {
	g := &guest{VMM: vmm, t: t, answer: s.Answer, lines: bufio.NewReader(vmm.Link()), console: newTranscript(vmm.Console())}
	t.Cleanup(func() {
		g.end()
		if t.Failed() {
			t.Logf("exit: %+v\nconsole:\n%s", vmm.Exit(), g.console.text())
		}
	})
	return g
}

// gaveUp reports whether the VMM has ended by itself, for no doing of the guest.
func (g *guest) gaveUp() bool {
	select {
	case <-g.Done():
		return g.Exit().Cause == hypervisor.Crashed
	case <-time.After(time.Second):
		return false
	}
}

// end kills the VMM and closes its streams.
func (g *guest) end() {
	g.Kill()
	_ = g.Link().Close()
	<-g.console.done // everything that the guest wrote has been read
	_ = g.Console().Close()
}

// ask sends one line and returns the answer.
func (g *guest) ask(format string, args ...any) string {
	g.t.Helper()
	g.tell(format, args...)
	return g.hear()
}

// hear reads one answer.
func (g *guest) hear() string {
	g.t.Helper()
	line, err := g.receive()
	if err != nil {
		g.t.Fatalf("wait for an answer: %v", err)
	}
	return line
}

// receive reads one answer, or fails after the time that a guest may take.
func (g *guest) receive() (string, error) {
	if err := g.Link().SetReadDeadline(time.Now().Add(g.answer)); err != nil {
		return "", err
	}
	line, err := g.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// tell sends one line.
func (g *guest) tell(format string, args ...any) {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.Link(), format+"\n", args...); err != nil {
		g.t.Fatalf("send %q: %v", fmt.Sprintf(format, args...), err)
	}
}

// want asks and compares.
func (g *guest) want(want, format string, args ...any) {
	g.t.Helper()
	if got := g.ask(format, args...); got != want {
		g.t.Fatalf("%s: the guest answers %q, want %q", fmt.Sprintf(format, args...), got, want)
	}
}

// count returns the guest's clock in ms.
func (g *guest) count() int {
	g.t.Helper()
	n, err := strconv.Atoi(g.ask("count"))
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// wait waits for the VMM's end by itself.
func (g *guest) wait() hypervisor.Exit {
	g.t.Helper()
	select {
	case <-g.Done():
		return g.Exit()
	case <-time.After(g.answer):
		g.t.Fatalf("the VMM has not ended after %v", g.answer)
		return hypervisor.Exit{}
	}
}

// transcript reads a console to its end and keeps what it said.
type transcript struct {
	done chan struct{}

	mu   sync.Mutex
	said strings.Builder
}

func newTranscript(r io.Reader) *transcript {
	tr := &transcript{done: make(chan struct{})}
	go func() {
		defer close(tr.done)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			tr.mu.Lock()
			tr.said.Write(buf[:n])
			tr.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return tr
}

func (tr *transcript) text() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.said.String()
}
