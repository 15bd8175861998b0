package hostexec_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// parentRole makes the test binary start a child, print its pid and wait; its value is "tied" or "detached".
const parentRole = "HOSTEXEC_TEST_PARENT"

func TestMain(m *testing.M) {
	if role := os.Getenv(parentRole); role != "" {
		os.Exit(beParent(role))
	}
	os.Exit(m.Run())
}

func beParent(role string) int {
	p, err := hostexec.Start(hostexec.Cmd{Path: "sleep", Args: []string{"1000"}, Detached: role == "detached"})
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = fmt.Fprintln(os.Stdout, p.Pid())
	<-p.Done()
	return 0
}

func sh(script string) hostexec.Cmd { return hostexec.Cmd{Path: "sh", Args: []string{"-c", script}} }

func TestRunTellsHowItFailed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cmd  hostexec.Cmd
		code int
		says []string
	}{
		"status and stderr": {sh("echo out; echo no such luck >&2; exit 3"), 3, []string{"sh", "exit status 3", "no such luck"}},
		"silence":           {sh("exit 1"), 1, []string{"exit status 1"}},
		"signal":            {sh("kill -KILL $$"), -1, []string{"killed"}},
		"only the tail":     {sh("yes early | head -c 100000 >&2; echo the last word >&2; exit 1"), 1, []string{"the last word"}},
		"no such program":   {hostexec.Cmd{Path: "/no/such/program"}, -1, []string{"/no/such/program", "no such file"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := hostexec.Run(t.Context(), c.cmd)
			if err == nil {
				t.Fatal("no error")
			}
			if got := hostexec.ExitCode(err); got != c.code {
				t.Errorf("ExitCode = %d, want %d", got, c.code)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %.300s", want, err.Error())
				}
			}
			if n := len(err.Error()); n > 10_000 {
				t.Errorf("the error has %d bytes", n)
			}
		})
	}
	if got := hostexec.ExitCode(nil); got != -1 {
		t.Errorf("ExitCode(nil) = %d", got)
	}
}

func TestOutput(t *testing.T) {
	t.Parallel()
	out, err := hostexec.Output(t.Context(), hostexec.Cmd{
		Path: "sh", Args: []string{"-c", `cat; echo "$WORD"; pwd; cat <&3`}, Env: []string{"WORD=env"}, Dir: "/", Stdin: strings.NewReader("in\n"),
		Files: []*os.File{fileWith(t, "inherited\n")},
	})
	if want := "in\nenv\n/\ninherited\n"; err != nil || string(out) != want {
		t.Errorf("Output = %q, %v; want %q", out, err, want)
	}
	var stderr bytes.Buffer
	c := sh("echo out; echo err >&2; exit 1")
	c.Stderr = &stderr
	if out, err = hostexec.Output(t.Context(), c); string(out) != "out\n" || stderr.String() != "err\n" || !strings.Contains(fmt.Sprint(err), "err") {
		t.Errorf("Output = %q, %v; stderr %q", out, err, stderr.String())
	}
}

func fileWith(t *testing.T, text string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestRunKillsTheWholeGroup(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	r, w := io.Pipe()
	why := errors.New("changed my mind")
	child := make(chan int, 1)
	go func() {
		child <- readPid(t, r)
		cancel(why)
	}()
	began := time.Now()
	c := sh("sleep 1000 & echo $!; wait")
	c.Stdout = w
	err := hostexec.Run(ctx, c)
	_ = w.Close()
	if !errors.Is(err, why) {
		t.Errorf("Run = %v, want the context's cause", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("the group took %s to end", d)
	}
	waitGone(t, <-child)
}

func TestProcess(t *testing.T) {
	t.Parallel()
	p, err := hostexec.Start(sh("exec sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	if pgid, err := unix.Getpgid(p.Pid()); err != nil || pgid != p.Pid() {
		t.Errorf("process group %d, %v; want %d", pgid, err, p.Pid())
	}
	select {
	case <-p.Done():
		t.Fatal("it ended by itself")
	default:
	}
	p.Signal(syscall.SIGTERM)
	<-p.Done()
	if p.Err() == nil || !strings.Contains(p.Err().Error(), "terminated") {
		t.Errorf("Err = %v, want the signal", p.Err())
	}
	p.Kill() // nothing to kill any more: must not panic, nor hit anybody
	if p, err := hostexec.Start(hostexec.Cmd{Path: "true"}); err != nil {
		t.Error(err)
	} else if <-p.Done(); p.Err() != nil {
		t.Error(p.Err())
	}
}

// TestDeathOfTheCaller kills a process that has started a child.
func TestDeathOfTheCaller(t *testing.T) {
	t.Parallel()
	for role, survives := range map[string]bool{"tied": false, "detached": true} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close() //nolint:errcheck // read only
			parent, err := hostexec.Start(hostexec.Cmd{
				Path: os.Args[0], Env: append(os.Environ(), parentRole+"="+role), Stdout: w, Stderr: os.Stderr,
			})
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			child := readPid(t, r)
			defer syscall.Kill(child, syscall.SIGKILL) //nolint:errcheck // if it is gone, all the better
			// Only the parent itself, as a crash would: not its group.
			if err := syscall.Kill(parent.Pid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-parent.Done()
			if !survives {
				waitGone(t, child)
				return
			}
			time.Sleep(100 * time.Millisecond) // as long as the other child has ample time to die in
			if state := stateOf(child); state == "" || state == "Z" {
				t.Errorf("the detached child died with its parent (state %q)", state)
			}
			if sid, err := unix.Getsid(child); err != nil || sid != child {
				t.Errorf("session %d, %v; want its own", sid, err)
			}
		})
	}
}

func readPid(t *testing.T, r io.Reader) int {
	t.Helper()
	var text []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			t.Errorf("read pid: %v", err)
			return 0
		}
		if b[0] == '\n' {
			break
		}
		text = append(text, b[0])
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Errorf("read pid: %v", err)
	}
	return pid
}

// stateOf returns the state letter of a process, or nothing if there is none.
func stateOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))[0]
}

func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if s := stateOf(pid); s == "" || s == "Z" { // nobody may be there to wait for an orphan
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("process %d is still there", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return
		}
	}
}

func TestLook(t *testing.T) {
	t.Parallel()
	if path, err := hostexec.Look("sh", "dash"); err != nil || !filepath.IsAbs(path) {
		t.Errorf("Look(sh) = %q, %v", path, err)
	}
	_, err := hostexec.Look("no-such-program", "no-such-package")
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "no-such-program") || !strings.Contains(fault.HintOf(err), "no-such-package") {
		t.Errorf("Look = %v (hint %q)", err, fault.HintOf(err))
	}
}
