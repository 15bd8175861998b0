package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
)

// echo is a command that writes its input to its output.
func echo(_ context.Context, s *attached) error {
	if err := s.started(); err != nil {
		return err
	}
	for {
		m, err := s.Receive()
		switch {
		case err != nil:
			return err
		case m.GetCloseStdin():
			return s.exit(0)
		}
		if err := errors.Join(s.stdout(string(m.GetStdin())), s.credit(len(m.GetStdin()))); err != nil {
			return err
		}
	}
}

func TestExecStreams(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: echo})
	all := make([]byte, 1<<20)
	for i := range all {
		all[i] = byte(i * 7 >> 3)
	}
	b.stdin = strings.NewReader(string(all))
	r := b.run("exec", "box", "--", "cat")
	if r.status != 0 || r.stdout != string(all) || r.stderr != "" {
		t.Errorf("status %d, %d bytes (want %d, equal), stderr %q", r.status, len(r.stdout), len(all), r.stderr)
	}
}

func TestExecSeparatesOutputs(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		return errors.Join(s.started(), s.stdout("a\x00b"), s.stderr("err"), s.exit(7))
	}})
	b.run("vm", "exec", "box", "--", "x").want(t, 7, "a\x00b", "err")
}

func TestExecRequest(t *testing.T) {
	t.Parallel()
	var got *bangerv1.AttachStart
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		got = s.start
		return errors.Join(s.started(), s.exit(0))
	}})
	b.env["HERE"] = "1=2"
	for _, args := range [][]string{
		{"exec", "-u", "nobody", "-w", "/tmp", "-e", "B=c", "-e", "HERE", "-e", "NOTHERE", "box", "--", "ls", "-t", "--user=x"},
		{"exec", "box", "-i", "--user", "nobody", "-w/tmp", "-e", "B=c", "-e", "HERE", "ls", "-t", "--user=x"},
		{"exec", "-i", "box", "--user", "nobody", "--workdir=/tmp", "-eB=c", "-e", "HERE", "--", "ls", "-t", "--user=x"},
	} {
		got = nil
		b.run(args...).want(t, 0, "", "")
		e := got.GetExec()
		if got.GetVm() != "box" || !slices.Equal(e.GetArgs(), []string{"ls", "-t", "--user=x"}) ||
			!slices.Equal(e.GetEnv(), []string{"B=c", "HERE=1=2"}) || e.GetUser() != "nobody" || e.GetDir() != "/tmp" || e.GetTty() || !e.GetStdin() {
			t.Errorf("%v sends %v", args, got)
		}
	}
}

func TestExitStatuses(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		switch s.start.GetVm() {
		case "nocmd":
			return remoteError(connect.CodeNotFound, "command-not-found", `run "x": not found`, "install it")
		case "noexec":
			return remoteError(connect.CodePermissionDenied, "command-not-executable", `run "x": permission denied`, "")
		case "novm":
			return remoteError(connect.CodeNotFound, "not-found", `there is no VM "novm"`, "banger ps")
		case "silent":
			return s.started()
		case "killed":
			return errors.Join(s.started(), s.exit(137))
		default:
			return errors.Join(s.started(), s.exit(-1))
		}
	}})
	for _, tc := range []struct {
		args   string
		status int
		stderr string // part of it
	}{
		{"exec nocmd -- x", 127, "banger: run \"x\": not found\n  try: install it\n"},
		{"exec noexec -- x", 126, "banger: run \"x\": permission denied\n"},
		{"exec novm -- x", 125, "banger: there is no VM \"novm\"\n  try: banger ps\n"},
		{"exec silent -- x", 125, "without the command's exit status"},
		{"exec killed -- x", 137, ""},
		{"exec odd -- x", 255, ""},
		{"exec", 2, "takes one VM"},
		{"exec box -t -T -- x", 2, "-t and -T exclude each other"},
		{"exec -t box -- x", 2, "the input is not a terminal"},
		{"exec --imgae box", 2, "unknown flag: --imgae"},
		{"run x", 2, "banger run -- x"},
		{"run . x -- y", 2, `before --, but got "x"`},
		{"run x y", 2, "banger run -- x y"},
		{"run --full", 2, "no path is given"},
		{"run . --copy --full", 2, "--copy sends a directory as it is"},
		{"run . --from HEAD", 2, "--branch NAME"},
		{"run -d . -- x", 2, "banger exec NAME -- x"},
		{"vm workspace prepare", 2, "a VM and a path"},
		{"run -d --rm", 2, "exclude each other"},
		{"run --name Bad_Name", 2, `bad VM name "Bad_Name"`},
		{"run --name=", 2, "it is empty"},
		{"run --memory lots", 2, `bad size "lots"`},
		{"run --memory 0", 2, "bad memory size 0"},
		{"run --disk-size 1", 2, "bad disk size 1"},
		{"run --vcpu 0", 2, "bad number of vCPUs 0"},
		{"run --vcpu -3", 2, "bad number of vCPUs -3"},
		{"run --net bridge", 2, "try: use one of: user, none"},
		{"run --env =x", 2, `bad --env "=x"`},
		{"run --label x", 2, `bad --label "x"`},
		{"run --imgae x", 2, "try: --image"},
		{"rum", 2, "try: banger run"},
		{"vm lst", 2, "try: banger vm list"},
		{"nonsense", 2, "try: banger --help"},
		{"stop", 2, "at least one VM"},
		{"ps x", 2, "takes no argument"},
		{"ps -o xml", 2, "table, json, yaml"},
		{"completion tcsh", 2, "bash, zsh or fish"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			t.Parallel()
			c := *b
			c.t = t
			r := c.run(strings.Fields(tc.args)...)
			if r.status != tc.status || !strings.Contains(r.stderr, tc.stderr) || tc.stderr == "" && r.stderr != "" {
				t.Errorf("status %d, want %d; stderr %q, want %q", r.status, tc.status, r.stderr, tc.stderr)
			}
		})
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	t.Parallel()
	var b *bench
	b = newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		if err := s.started(); err != nil {
			return err
		}
		for {
			m, err := s.Receive()
			if err != nil {
				return err
			}
			switch syscall.Signal(m.GetSignal()) {
			case syscall.SIGINT:
				return errors.Join(s.stdout("caught"), s.exit(42))
			case 0:
				if m.GetCloseStdin() { // the session is up
					b.signals <- syscall.SIGWINCH // no terminal: not forwarded
					b.signals <- syscall.SIGINT
				}
			default:
				return errors.New("an unexpected signal")
			}
		}
	}})
	b.run("exec", "box", "--", "x").want(t, 42, "caught", "")
}

func TestSecondInterruptGivesUp(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	var b *bench
	b = newBench(t, &fakeDaemon{attach: func(ctx context.Context, s *attached) error {
		defer close(gone)
		if err := s.started(); err != nil {
			return err
		}
		for range 2 { // the end of the input, the first signal
			if _, err := s.Receive(); err != nil {
				return err
			}
			b.signals <- syscall.SIGINT
			b.signals <- syscall.SIGINT // at once: it counts as the same
			time.Sleep(2 * together)
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	b.run("exec", "box", "--", "x").want(t, 130, "", "banger: interrupted\n")
	<-gone
}

func TestInterruptBeforeStart(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	var b *bench
	b = newBench(t, &fakeDaemon{attach: func(ctx context.Context, s *attached) error {
		defer close(gone)
		if err := s.progress(&bangerv1.Progress{Stage: "boot"}); err != nil {
			return err
		}
		b.signals <- syscall.SIGINT
		<-ctx.Done()
		return ctx.Err()
	}})
	b.run("run", "--", "x").want(t, 130, "", "banger: interrupted\n")
	<-gone
}

func TestRunRequest(t *testing.T) {
	t.Parallel()
	var got *bangerv1.AttachStart
	removed := false
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		got = s.start
		err := errors.Join(
			s.progress(&bangerv1.Progress{Stage: "boot"}), s.progress(&bangerv1.Progress{Stage: "boot", Ended: true}),
			s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Vm{Vm: &bangerv1.VM{Name: "box"}}}),
			s.started(), s.stdout("out"), s.exit(3))
		time.Sleep(20 * time.Millisecond)
		removed = true
		return err
	}})
	r := b.run("run", "--rm", "--name", "box", "--memory", "2G", "--vcpu=2", "--disk-size", "1GiB", "--net", "none", "--init", "agent",
		"-e", "A=b", "--label", "k=v", "--image", "i", "--kernel", "k", "--backend", "qemu", "-u", "me", "--", "make", "-j2")
	r.want(t, 3, "out", "")
	if !removed {
		t.Error("run --rm did not wait for the VM's deletion")
	}
	c := got.GetCreate()
	want := &bangerv1.CreateRequest{Name: "box", Start: true, Spec: &bangerv1.Spec{
		Image: "i", Kernel: "k", Vcpus: 2, Memory: 2 << 30, DiskSize: 1 << 30, Init: "agent", Net: "none", Backend: "qemu",
		Env: map[string]string{"A": "b"}, Labels: map[string]string{"k": "v"},
	}}
	if c.String() != want.String() || !got.GetRemove() || got.GetExec().GetUser() != "me" || !slices.Equal(got.GetExec().GetArgs(), []string{"make", "-j2"}) {
		t.Errorf("sent %v", got)
	}
}

func TestRunTellsOfFailedDeletion(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		_ = errors.Join(s.started(), s.exit(4))
		return remoteError(connect.CodeAborted, "busy", "VM box is busy: stop", "")
	}})
	b.run("run", "--rm", "--", "x").want(t, 4, "", "banger: delete the VM: VM box is busy: stop\n")
}

func TestTimings(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		return errors.Join(s.progress(&bangerv1.Progress{Stage: "boot kernel"}),
			s.progress(&bangerv1.Progress{Stage: "boot kernel", Ended: true}), s.started(), s.stdout("pure"), s.exit(0))
	}})
	r := b.run("run", "--timings", "--", "x")
	if r.stdout != "pure" {
		t.Errorf("stdout %q", r.stdout)
	}
	for _, stage := range []string{"connect ", "boot kernel ", "total "} {
		if !strings.Contains(r.stderr, "\n"+stage) {
			t.Errorf("no stage %q in\n%s", stage, r.stderr)
		}
	}
}

func TestTimingsAsJSON(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		return errors.Join(s.progress(&bangerv1.Progress{Stage: "boot", Ended: true, Elapsed: durationpb.New(1500 * time.Millisecond)}),
			s.started(), s.exit(0))
	}})
	r := b.run("run", "--timings=json", "--quiet", "--", "x")
	var v struct {
		Stages []struct {
			Name    string
			Seconds float64
		}
		Total float64
	}
	if err := json.Unmarshal([]byte(r.stderr), &v); err != nil {
		t.Fatalf("%v in %q", err, r.stderr)
	}
	if len(v.Stages) != 2 || v.Stages[0].Name != "connect" || v.Stages[1].Name != "boot" || v.Stages[1].Seconds != 1.5 || v.Total <= 0 {
		t.Errorf("timings %+v", v)
	}
	b.run("run", "--timings=xml").want(t, 2, "", "banger: invalid argument \"xml\" for \"--timings\" flag: there is no \"xml\"\n  try: use one of: table, json\n")
}

// brokenPipe is an output that nobody reads any more.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	b := newBench(t, &fakeDaemon{attach: func(ctx context.Context, s *attached) error {
		defer close(gone)
		_ = s.started()
		for s.stdout("y\n") == nil && ctx.Err() == nil { // until the client has gone
		}
		return io.ErrClosedPipe
	}})
	b.stdout = brokenPipe{}
	b.run("exec", "box", "--", "yes").want(t, 141, "", "")
	<-gone
}

func TestBrokenConnection(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		_ = s.started()
		panic(http.ErrAbortHandler)
	}})
	r := b.run("exec", "box", "--", "x")
	if r.status != 125 || !strings.HasPrefix(r.stderr, "banger: ") || !strings.Contains(r.stderr, "\n  try: ") {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
}
