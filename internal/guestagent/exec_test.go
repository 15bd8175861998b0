package guestagent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

func shell(script string) guestproto.ExecSpec {
	return guestproto.ExecSpec{Args: []string{"/bin/sh", "-c", script}, Dir: "/"}
}

func TestExec(t *testing.T) {
	t.Parallel()
	c := connect(t)
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB: more than any window
	cases := map[string]struct {
		spec  guestproto.ExecSpec
		input string
		want  string
		exit  guestproto.ExitStatus
	}{
		"output":          {spec: shell("printf out; printf err >&2"), want: "outerr"},
		"status":          {spec: shell("exit 42"), exit: guestproto.ExitStatus{Code: 42}},
		"killed":          {spec: shell("kill -9 $$"), exit: guestproto.ExitStatus{Code: 137, Signal: 9}},
		"directory":       {spec: guestproto.ExecSpec{Args: []string{"pwd"}, Dir: "/usr"}, want: "/usr\n"},
		"environment":     {spec: guestproto.ExecSpec{Args: []string{"sh", "-c", "echo $A $LANG"}, Env: []string{"A=x", "A=y", "LANG=de"}}, want: "y de\n"},
		"no input":        {spec: shell("cat; echo end"), want: "end\n"},
		"input":           {spec: shell("cat"), input: big, want: big},
		"input unread":    {spec: shell("exit 3"), input: big, exit: guestproto.ExitStatus{Code: 3}},
		"input half read": {spec: shell("head -c 5; exec <&-; echo; echo done"), input: big, want: "01234\ndone\n"},
		"terminal":        {spec: guestproto.ExecSpec{Args: []string{"sh", "-c", "stty size; echo $TERM"}, TTY: true, Rows: 5, Cols: 7, Term: "vt100"}, want: "5 7\r\nvt100\r\n"},
		"controlling":     {spec: guestproto.ExecSpec{Args: []string{"sh", "-c", "echo x > /dev/tty"}, TTY: true}, want: "x\r\n"},
		"terminal's end":  {spec: guestproto.ExecSpec{Args: []string{"cat"}, TTY: true}, input: "hi\n", want: "hi\r\nhi\r\n"},
		"relative":        {spec: guestproto.ExecSpec{Args: []string{"bin/true"}, Dir: "/usr"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, exit := run(t, c, tc.spec, tc.input)
			// The order of the two outputs is not defined.
			if out != tc.want && !(name == "output" && out == "errout") || exit != tc.exit {
				t.Errorf("got %q, %+v; want %q, %+v", clip(out, 300), exit, clip(tc.want, 300), tc.exit)
			}
		})
	}
}

func TestExecRefuses(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "broken": 0o755, "lost": 0o755} {
		content := "#!/no/such/interpreter\n"
		if name == "broken" {
			content = "\x00\x01\x02"
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]struct {
		spec   guestproto.ExecSpec
		kind   fault.Kind
		status int
	}{
		"unknown command":  {guestproto.ExecSpec{Args: []string{"no-such-command"}}, fault.NotFound, 127},
		"missing path":     {guestproto.ExecSpec{Args: []string{"/no/such"}}, fault.NotFound, 127},
		"no interpreter":   {guestproto.ExecSpec{Args: []string{dir + "/lost"}}, fault.NotFound, 127},
		"not executable":   {guestproto.ExecSpec{Args: []string{dir + "/plain"}}, fault.Denied, 126},
		"no program":       {guestproto.ExecSpec{Args: []string{dir + "/broken"}}, fault.Denied, 126},
		"a directory":      {guestproto.ExecSpec{Args: []string{dir}}, fault.Denied, 126},
		"unknown user":     {guestproto.ExecSpec{Args: []string{"true"}, User: "nobody-such"}, fault.Invalid, 0},
		"unknown group":    {guestproto.ExecSpec{Args: []string{"true"}, User: "root:no-such"}, fault.Invalid, 0},
		"no directory":     {guestproto.ExecSpec{Args: []string{"true"}, Dir: "/no/such"}, fault.Precondition, 0},
		"relative":         {guestproto.ExecSpec{Args: []string{"true"}, Dir: "usr"}, fault.Invalid, 0},
		"bad environment":  {guestproto.ExecSpec{Args: []string{"true"}, Env: []string{"=x"}}, fault.Invalid, 0},
		"zero in argument": {guestproto.ExecSpec{Args: []string{"true", "a\x00b"}}, fault.Invalid, 0},
		"too long":         {guestproto.ExecSpec{Args: []string{"true", strings.Repeat("x", 2<<20)}}, fault.Invalid, 0},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := c.Start(t.Context(), tc.spec)
			if fault.KindOf(err) != tc.kind || guestlink.StartStatus(err) != tc.status {
				t.Errorf("Start = %v (%v), status %d", err, fault.KindOf(err), guestlink.StartStatus(err))
			}
		})
	}
}

func TestLoginShell(t *testing.T) {
	t.Parallel()
	c := connect(t)
	out, _ := run(t, c, guestproto.ExecSpec{}, "echo name=$0\n")
	if !strings.Contains(out, "name=-") {
		t.Errorf("not a login shell: %q", out)
	}
}

func TestEnvironmentOfEveryCommand(t *testing.T) {
	t.Parallel()
	c := connect(t)
	if err := c.Configure(t.Context(), guestproto.Identity{Env: []string{"ALL=1", "PATH=/usr/bin:/bin"}}); err != nil {
		t.Fatal(err)
	}
	spec := shell("echo $ALL $PATH $ONE")
	spec.Env = []string{"ONE=2"}
	if out, _ := run(t, c, spec, ""); out != "1 /usr/bin:/bin 2\n" {
		t.Errorf("got %q", out)
	}
}

func TestSignalAndResize(t *testing.T) {
	t.Parallel()
	c := connect(t)
	spec := shell(`trap 'echo term; exit 7' TERM; trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done`)
	spec.TTY = true
	p, err := c.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() //nolint:errcheck // always nil
	await(t, p, "ready")
	if err := p.Resize(33, 44); err != nil {
		t.Fatal(err)
	}
	await(t, p, "33 44")
	if err := p.Signal(int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if out, exit := drain(t, p); !strings.Contains(out, "term") || exit.Code != 7 {
		t.Errorf("got %q, %+v", out, exit)
	}
	if err := p.Signal(65); !fault.Is(err, fault.Invalid) {
		t.Errorf("Signal(65) = %v", err)
	}
	if _, err := p.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("Recv after the exit = %v", err)
	}
}

// await receives until the output has text.
func await(t *testing.T, p *guestlink.Process, text string) {
	t.Helper()
	var out bytes.Buffer
	for !strings.Contains(out.String(), text) {
		e, err := p.Recv()
		if err != nil || e.Kind == guestproto.EventExit {
			t.Fatalf("ended (%v) before %q; got %q", err, text, out.String())
		}
		out.Write(e.Data)
	}
}

// A signal and a Close get through although the command reads nothing of its full standard input.
func TestSignalPassesUnreadInput(t *testing.T) {
	t.Parallel()
	c := connect(t)
	spec := shell("exec sleep 1000")
	spec.Stdin = true
	p, err := c.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() //nolint:errcheck // always nil
	stopped := make(chan error, 1)
	go func() {
		_, err := io.Copy(p, zeros{})
		stopped <- err
	}()
	time.Sleep(100 * time.Millisecond) // so that the input is stuck; without it the test is only weaker
	if err := p.Signal(int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if _, exit := drain(t, p); exit.Signal != 9 {
		t.Errorf("exit %+v", exit)
	}
	select {
	case err := <-stopped:
		if err == nil {
			t.Error("Write took bytes for ever")
		}
	case <-time.After(10 * time.Second):
		t.Error("Write hangs after the exit")
	}
}

func TestAbandonedCommandIsHungUp(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"polite":      "trap 'exit 0' HUP; echo $$; while :; do sleep 0.02; done",
		"stubborn":    "trap '' HUP; echo $$; while :; do sleep 0.02; done",
		"full output": "echo $$; exec cat /dev/zero",
		"full input":  "echo $$; exec sleep 1000",
	} {
		for _, by := range []string{"close", "context"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				t.Parallel()
				c := connect(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				spec := shell(script)
				spec.Stdin = name == "full input"
				p, err := c.Start(ctx, spec)
				if err != nil {
					t.Fatal(err)
				}
				await(t, p, "\n")
				if spec.Stdin {
					go io.Copy(p, zeros{}) //nolint:errcheck // it fails when p is closed
					time.Sleep(50 * time.Millisecond)
				}
				if by == "close" {
					_ = p.Close()
				} else {
					cancel()
					for {
						if _, err := p.Recv(); err != nil {
							if !fault.Is(err, fault.Canceled) {
								t.Errorf("Recv = %v", err)
							}
							break
						}
					}
				}
				for deadline := time.Now().Add(10 * time.Second); syscall.Kill(p.Pid(), 0) == nil; {
					if time.Now().After(deadline) {
						t.Fatal("the command goes on")
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
	}
}

// A process that a command leaves behind with the output open doesn't hold the command's end up, whether it is silent or
// never silent, and what the command itself wrote is complete.
func TestOutputHeldOpen(t *testing.T) {
	t.Parallel()
	c := connect(t)
	for name, left := range map[string]string{
		"silent": "sleep 4 &",
		"chatty": "(i=0; while [ $i -lt 300 ]; do echo noise; sleep 0.01; i=$((i+1)); done) &",
		"closed": "sleep 4 >/dev/null 2>&1 &",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			out, _ := run(t, c, shell(left+" head -c 60000 /dev/zero; exit 0"), "")
			if n := strings.Count(out, "\x00"); n != 60000 {
				t.Errorf("%d bytes of 60000", n)
			}
			if took := time.Since(begin); name != "chatty" && took > 3*time.Second {
				t.Errorf("the end took %v", took)
			}
		})
	}
}

func TestSlowReaderBoundsMemory(t *testing.T) {
	t.Parallel()
	c := connect(t)
	p, err := c.Start(t.Context(), shell("head -c 268435456 /dev/zero"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close() //nolint:errcheck // always nil
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := p.Recv(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // the command runs into the full windows
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	total := 0
	for {
		e, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == guestproto.EventExit {
			break
		}
		total += len(e.Data)
	}
	if total < 250<<20 || total > 256<<20 {
		t.Errorf("%d bytes came", total)
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	c := connect(t)
	for spec, want := range map[string]string{
		"": "0 0", "nobody": "65534 65534", "4242": "4242 0", "4242:4343": "4242 4343", "nobody:root": "65534 0",
	} {
		out, _ := run(t, c, guestproto.ExecSpec{Args: []string{"sh", "-c", "echo $(id -u) $(id -g)"}, Dir: "/", User: spec}, "")
		if strings.TrimSpace(out) != want {
			t.Errorf("user %q: %q, want %q", spec, out, want)
		}
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	t.Parallel()
	c := connect(t)
	done := make(chan string, 40)
	for i := range cap(done) {
		go func() {
			p, err := c.Start(t.Context(), shell("echo "+strconv.Itoa(i)))
			if err != nil {
				done <- err.Error()
				return
			}
			defer p.Close() //nolint:errcheck // always nil
			e, err := p.Recv()
			if err != nil || strings.TrimSpace(string(e.Data)) != strconv.Itoa(i) {
				done <- "wrong output " + string(e.Data)
				return
			}
			done <- ""
		}()
	}
	for range cap(done) {
		if msg := <-done; msg != "" {
			t.Error(msg)
		}
	}
}
