//go:build fakevmm

package machines_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
)

// createWith makes a VM whose main process is a shell script.
func (b *bed) createWith(name, script string) {
	b.Helper()
	_, err := b.svc.Create(b.Context(), machines.CreateRequest{Name: name, Spec: microvm.Spec{
		Main: &microvm.Process{Args: []string{"sh", "-c", script}, Dir: "/"}, Env: map[string]string{"WHO": "main"},
	}}, nil)
	if err != nil {
		b.Fatalf("create %s: %v", name, err)
	}
}

// waitFile waits for a file that a main process writes, and returns what is in it.
func (b *bed) waitFile(path string) string {
	b.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if text, err := os.ReadFile(path); err == nil && strings.HasSuffix(string(text), "\n") {
			return string(text)
		}
		if time.Now().After(deadline) {
			b.Fatalf("nothing in %s", path)
		}
	}
}

func TestMainProcessRunsAtEachStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	out := b.path("out")
	b.createWith("a", "echo $WHO >>"+out)
	for _, want := range []string{"main\n", "main\nmain\n"} {
		b.start("a")
		if info := b.waitState("a", microvm.Stopped); !strings.Contains(info.Cause, "shut down") {
			t.Errorf("cause %q", info.Cause)
		}
		if got := b.waitFile(out); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestMainProcessSurvivesDaemonAndIsStopped(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	out := b.path("out")
	b.createWith("a", "trap 'echo stopped >>"+out+"; exit 0' TERM; echo started >>"+out+"; while [ -e "+b.dir+" ]; do sleep 0.02; done")
	b.start("a")
	b.waitFile(out)
	b.restart()
	if info := b.get("a"); info.State != microvm.Running {
		t.Fatalf("after the daemon's restart it is %s (%s)", info.State, info.Cause)
	}
	info, err := b.svc.Stop(t.Context(), "a", time.Minute, nil)
	if err != nil || info.State != microvm.Stopped || info.Cause != "stopped" {
		t.Errorf("stop: %s (%s), %v", info.State, info.Cause, err)
	}
	if got := b.waitFile(out); got != "started\nstopped\n" {
		t.Errorf("got %q", got)
	}
}

func TestMainProcessThatIsNotThere(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	_, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "a", Spec: microvm.Spec{
		Main: &microvm.Process{Args: []string{"/no/such/program"}},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.svc.Start(t.Context(), "a", nil); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start: %v", err)
	}
	if info := b.get("a"); info.State != microvm.Failed || !strings.Contains(info.Cause, "/no/such/program") {
		t.Errorf("it is %s (%s)", info.State, info.Cause)
	}
}
