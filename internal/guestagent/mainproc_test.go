package guestagent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

// watched is a hosted system whose console is a file.
type watched struct {
	hosted

	console string
}

func (w watched) Console() *os.File {
	f, err := os.OpenFile(w.console, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil
	}
	return f
}

// guestWithMain serves an agent and starts a main process in it.
type guestWithMain struct {
	client *guestlink.Client
	system watched
}

func serveWatched(t *testing.T) guestWithMain {
	t.Helper()
	host, guest := sockets(t)
	g := guestWithMain{system: watched{hosted{make(chan guestproto.Shutdown, 1)}, filepath.Join(t.TempDir(), "console")}}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = New("hosted", g.system, newChildren()).Serve(ctx, guest) // its end is the link's
	}()
	s, _, err := guestlink.Open(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		cancel()
		<-served
	})
	g.client = guestlink.NewClient(s)
	return g
}

func (g guestWithMain) start(t *testing.T, script string, signal int) {
	t.Helper()
	if err := g.client.Main(t.Context(), mainOf(script, signal)); err != nil {
		t.Fatal(err)
	}
}

func mainOf(script string, signal int) guestproto.MainSpec {
	return guestproto.MainSpec{Exec: guestproto.ExecSpec{Args: []string{"sh", "-c", script}, Dir: "/"}, StopSignal: signal}
}

// awaitFile waits for a file that the main process makes.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the main process does not run")
		}
	}
}

// down waits until the guest goes down and returns what is on its console.
func (g guestWithMain) down(t *testing.T) string {
	t.Helper()
	select {
	case <-g.system.down:
	case <-time.After(time.Minute):
		t.Fatal("the guest does not go down")
	}
	return g.log(t)
}

func (g guestWithMain) log(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(g.system.console)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func TestMainProcessEndsGuest(t *testing.T) {
	t.Parallel()
	g := serveWatched(t)
	g.start(t, "echo out; echo err >&2; cat; exit 3", 0)
	got := g.down(t)
	if !strings.HasPrefix(got, "out\nerr\n") || !strings.HasSuffix(got, "banger-guest: the main process ended with status 3\n") {
		t.Errorf("console %q", got)
	}
}

func TestMainProcessIsStartedOnce(t *testing.T) {
	t.Parallel()
	g := serveWatched(t)
	fifo := filepath.Join(t.TempDir(), "go")
	g.start(t, "echo one; mkfifo "+fifo+"; read x <"+fifo, 0)
	g.start(t, "echo two", 0)
	awaitFile(t, fifo)
	if err := os.WriteFile(fifo, []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	if got := g.down(t); strings.Contains(got, "two") || !strings.HasPrefix(got, "one\n") {
		t.Errorf("console %q", got)
	}
}

func TestMainProcessThatCannotStart(t *testing.T) {
	t.Parallel()
	g := serveWatched(t)
	for _, c := range []struct {
		name string
		spec guestproto.MainSpec
		kind fault.Kind
	}{
		{"no such program", guestproto.MainSpec{Exec: guestproto.ExecSpec{Args: []string{"/no/such"}}}, fault.NotFound},
		{"no such user", guestproto.MainSpec{Exec: guestproto.ExecSpec{Args: []string{"true"}, User: "nosuchuser"}}, fault.Invalid},
		{"no such signal", guestproto.MainSpec{Exec: guestproto.ExecSpec{Args: []string{"true"}}, StopSignal: 99}, fault.Invalid},
	} {
		if err := g.client.Main(t.Context(), c.spec); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	g.start(t, "echo late", 0) // one that failed does not stand in the way of the next
	if got := g.down(t); !strings.HasPrefix(got, "late\n") {
		t.Errorf("console %q", got)
	}
}

// The stop signal goes to the main process before anything else happens, and it gets the time to end.
func TestShutdownAsksMainProcess(t *testing.T) {
	t.Parallel()
	const quit = 3
	g := serveWatched(t)
	ready := filepath.Join(t.TempDir(), "ready")
	g.start(t, `trap 'echo quit; sleep 0.3; echo done; exit 0' QUIT; trap 'echo term' TERM; : >`+ready+`; while [ -e `+ready+` ]; do sleep 0.05; done`, quit)
	awaitFile(t, ready)
	if err := g.client.Shutdown(t.Context(), guestproto.PowerOff, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := g.down(t); got != "quit\ndone\nbanger-guest: the main process ended with status 0\n" {
		t.Errorf("console %q", got)
	}
}

func TestShutdownDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	g := serveWatched(t)
	ready := filepath.Join(t.TempDir(), "ready")
	g.start(t, `trap '' TERM; : >`+ready+`; while [ -e `+ready+` ]; do sleep 0.05; done`, 15)
	awaitFile(t, ready)
	if err := g.client.Shutdown(t.Context(), guestproto.PowerOff, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := g.down(t); strings.Contains(got, "ended") {
		t.Errorf("console %q", got)
	}
}
