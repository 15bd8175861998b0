//go:build fakevmm

package rpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
	"banger/internal/rpcclient"
)

// events reads a long call to its end and returns the VM and the stages that were told of.
func events(stream *connect.ServerStreamForClient[bangerv1.Event], err error) (vm *bangerv1.VM, stages string, _ error) {
	if err != nil {
		return nil, "", err
	}
	defer stream.Close() //nolint:errcheck // Err tells
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p != nil && (p.GetEnded() || p.GetTotal() > 0) {
			stages += p.GetStage() + ";"
		}
		if vm != nil {
			return vm, stages, errors.New("something comes after the VM")
		}
		vm = stream.Msg().GetVm()
	}
	return vm, stages, stream.Err()
}

func (b *bed) create(name string, start bool) *bangerv1.VM {
	b.Helper()
	vm, _, err := events(b.api.VMs.Create(b.Context(), connect.NewRequest(&bangerv1.CreateRequest{
		Name: name, Start: start, Spec: &bangerv1.Spec{Env: map[string]string{"A": "vm", "B": "vm"}},
	})))
	if err != nil {
		b.Fatal(err)
	}
	return vm
}

// session is an Exec or Run under way.
type session struct {
	*bed

	stream *connect.BidiStreamForClient[bangerv1.AttachRequest, bangerv1.AttachResponse]
	out    string
	errOut string
	vm     *bangerv1.VM
	pid    int64
	stages string
}

func (b *bed) attach(
	open func(context.Context) *connect.BidiStreamForClient[bangerv1.AttachRequest, bangerv1.AttachResponse],
	ctx context.Context, start *bangerv1.AttachStart, //nolint:revive // open goes first, as the verb
) *session {
	b.Helper()
	s := &session{bed: b, stream: open(ctx)}
	if err := s.stream.Send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Start{Start: start}}); err != nil {
		b.Fatal(err)
	}
	return s
}

func (b *bed) exec(vm string, spec *bangerv1.ExecSpec) *session {
	b.Helper()
	return b.attach(b.api.VMs.Exec, b.Context(), &bangerv1.AttachStart{Target: &bangerv1.AttachStart_Vm{Vm: vm}, Exec: spec})
}

func (b *bed) run(ctx context.Context, remove bool, args ...string) *session {
	b.Helper()
	return b.attach(b.api.VMs.Run, ctx, &bangerv1.AttachStart{
		Target: &bangerv1.AttachStart_Create{Create: &bangerv1.CreateRequest{Name: "a"}},
		Exec:   &bangerv1.ExecSpec{Args: args, Stdin: true}, Remove: remove,
	})
}

func (s *session) send(m *bangerv1.AttachRequest) {
	s.Helper()
	if err := s.stream.Send(m); err != nil {
		s.Fatal(err)
	}
}

func (s *session) stdin(text string) {
	s.Helper()
	s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Stdin{Stdin: []byte(text)}})
}

// next receives until the condition holds or the command has ended, whose exit is then returned.
func (s *session) next(until func() bool) (*bangerv1.ExitStatus, error) {
	for !until() {
		res, err := s.stream.Receive()
		if err != nil {
			return nil, err
		}
		switch k := res.GetKind().(type) {
		case *bangerv1.AttachResponse_Stdout:
			s.out += string(k.Stdout)
		case *bangerv1.AttachResponse_Stderr:
			s.errOut += string(k.Stderr)
		case *bangerv1.AttachResponse_Vm:
			s.vm = k.Vm
		case *bangerv1.AttachResponse_Started:
			s.pid = k.Started
		case *bangerv1.AttachResponse_Progress:
			s.stages += k.Progress.GetStage() + ";"
		case *bangerv1.AttachResponse_Exit:
			if _, err := s.stream.Receive(); !errors.Is(err, io.EOF) {
				return k.Exit, fmt.Errorf("after the exit comes %w", err)
			}
			return k.Exit, nil
		}
	}
	return nil, nil
}

func never() bool { return false }

// end receives to the end of the command.
func (s *session) end() *bangerv1.ExitStatus {
	s.Helper()
	exit, err := s.next(never)
	if err != nil {
		s.Fatal(err)
	}
	return exit
}

func (s *session) waitOutput(text string) {
	s.Helper()
	exit, err := s.next(func() bool { return strings.Contains(s.out, text) })
	if exit != nil || err != nil {
		s.Fatalf("instead of %q: %q, %v, %v", text, s.out, exit, err)
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm, stages, err := events(b.api.VMs.Create(t.Context(), connect.NewRequest(&bangerv1.CreateRequest{Name: "a"})))
	if err != nil || vm.GetState() != "stopped" || vm.GetSpec().GetImage() != "image" || stages != "image;make disks;" {
		t.Fatalf("created %v, %q, %v", vm, stages, err)
	}
	vm, stages, err = events(b.api.VMs.Start(t.Context(), connect.NewRequest(&bangerv1.StartRequest{Vm: "a"})))
	if err != nil || vm.GetState() != "running" || vm.GetBootId() == "" || vm.GetMonitorPid() == 0 || vm.GetVmmPid() == 0 ||
		len(vm.GetStartStages()) != 2 || vm.GetBackend() != "fake" || stages != "start monitor;boot;" {
		t.Errorf("started %v, %q, %v", vm, stages, err)
	}
	if _, _, err = events(b.api.VMs.Delete(t.Context(), connect.NewRequest(&bangerv1.DeleteRequest{Vm: "a"}))); !fault.Is(err, fault.Precondition) {
		t.Errorf("delete of a running VM: %v", err)
	}
	list, err := b.api.VMs.List(t.Context(), connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil || len(list.Msg.GetVms()) != 1 || list.Msg.GetVms()[0].GetState() != "running" {
		t.Errorf("list: %v, %v", list, err)
	}
	bad := &bangerv1.StopRequest{Vm: "a", Timeout: durationpb.New(-time.Second)}
	if _, _, err = events(b.api.VMs.Stop(t.Context(), connect.NewRequest(bad))); !fault.Is(err, fault.Invalid) {
		t.Errorf("stop in negative time: %v", err)
	}
	vm, stages, err = events(b.api.VMs.Stop(t.Context(), connect.NewRequest(&bangerv1.StopRequest{Vm: vm.GetId()[:4]})))
	if err != nil || vm.GetState() != "stopped" || vm.GetMonitorPid() != 0 || stages != "shut down;" {
		t.Errorf("stopped %v, %q, %v", vm, stages, err)
	}
	if vm, _, err = events(b.api.VMs.Delete(t.Context(), connect.NewRequest(&bangerv1.DeleteRequest{Vm: "a"}))); err != nil || vm.GetName() != "a" {
		t.Errorf("deleted %v, %v", vm, err)
	}
	if _, err = b.api.VMs.Get(t.Context(), connect.NewRequest(&bangerv1.GetRequest{Vm: "a"})); !fault.Is(err, fault.NotFound) || fault.HintOf(err) == "" {
		t.Errorf("get: %v", err)
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	for name, c := range map[string]struct {
		spec         *bangerv1.ExecSpec
		out, err     string
		code, signal int32
	}{
		"success":     {&bangerv1.ExecSpec{Args: []string{"true"}}, "", "", 0, 0},
		"status":      {&bangerv1.ExecSpec{Args: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}}, "out\n", "err\n", 3, 0},
		"signal":      {&bangerv1.ExecSpec{Args: []string{"sh", "-c", "kill -TERM $$"}}, "", "", 143, 15},
		"environment": {&bangerv1.ExecSpec{Args: []string{"sh", "-c", "echo $A $B"}, Env: []string{"B=command"}}, "vm command\n", "", 0, 0},
		"directory":   {&bangerv1.ExecSpec{Args: []string{"pwd"}, Dir: "/usr"}, "/usr\n", "", 0, 0},
		"no input":    {&bangerv1.ExecSpec{Args: []string{"cat"}}, "", "", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := (&bed{T: t, api: b.api}).exec("a", c.spec)
			if exit := s.end(); exit.GetCode() != c.code || exit.GetSignal() != c.signal || s.out != c.out || s.errOut != c.err || s.pid == 0 {
				t.Errorf("exit %v, stdout %q, stderr %q, pid %d", exit, s.out, s.errOut, s.pid)
			}
		})
	}
}

func TestExecRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	b.create("stopped", false)
	true1 := &bangerv1.ExecSpec{Args: []string{"true"}}
	for name, c := range map[string]struct {
		vm     string
		spec   *bangerv1.ExecSpec
		kind   fault.Kind
		remote string
	}{
		"no VM":          {"none", true1, fault.NotFound, "not-found"},
		"VM not running": {"stopped", true1, fault.Precondition, "precondition"},
		"no command":     {"a", &bangerv1.ExecSpec{Args: []string{"no-such-command"}}, fault.NotFound, rpcclient.KindCommandNotFound},
		"not executable": {"a", &bangerv1.ExecSpec{Args: []string{"/etc/passwd"}}, fault.Denied, rpcclient.KindCommandNotExecutable},
		"no directory":   {"a", &bangerv1.ExecSpec{Args: []string{"true"}, Dir: "/no/such"}, fault.Precondition, "precondition"},
		"no user":        {"a", &bangerv1.ExecSpec{Args: []string{"true"}, User: "nosuchuser"}, fault.Invalid, "invalid"},
		"bad variable":   {"a", &bangerv1.ExecSpec{Args: []string{"true"}, Env: []string{"A B=x"}}, fault.Invalid, "invalid"},
		"bad size":       {"a", &bangerv1.ExecSpec{Args: []string{"true"}, Tty: true, Size: &bangerv1.WindowSize{Rows: 1 << 20}}, fault.Invalid, "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := (&bed{T: t, api: b.api}).exec(c.vm, c.spec).next(never)
			remote, ok := errors.AsType[*rpcclient.Remote](err)
			if !fault.Is(err, c.kind) || !ok || remote.Kind != c.remote {
				t.Errorf("%v (%v), want %v", err, remote, c.kind)
			}
		})
	}
	for name, open := range map[string]func(context.Context) *connect.BidiStreamForClient[bangerv1.AttachRequest, bangerv1.AttachResponse]{
		"Exec": b.api.VMs.Exec, "Run": b.api.VMs.Run,
	} {
		stream := open(t.Context())
		_ = stream.Send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Signal{Signal: 9}})
		if _, err := stream.Receive(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s without a start message: %v", name, err)
		}
	}
	if _, err := b.attach(b.api.VMs.Run, t.Context(), &bangerv1.AttachStart{Exec: true1}).next(never); !fault.Is(err, fault.Invalid) {
		t.Errorf("Run without a VM to create: %v", err)
	}
}

func TestInputOfACommand(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	t.Run("half close", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{Args: []string{"sh", "-c", "cat; echo end"}, Stdin: true})
		s.stdin("one ")
		s.stdin("two ")
		if err := s.stream.CloseRequest(); err != nil {
			t.Fatal(err)
		}
		if exit := s.end(); exit.GetCode() != 0 || s.out != "one two end\n" {
			t.Errorf("exit %v, %q", exit, s.out)
		}
	})
	t.Run("much", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{Args: []string{"wc", "-c"}, Stdin: true})
		for range 20 {
			s.stdin(strings.Repeat("x", 100_000))
		}
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_CloseStdin{CloseStdin: true}})
		if exit := s.end(); exit.GetCode() != 0 || strings.TrimSpace(s.out) != "2000000" {
			t.Errorf("exit %v, %q", exit, s.out)
		}
	})
	t.Run("signal after the end of input", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{Args: []string{"sh", "-c", "cat; echo end; exec sleep 1000"}, Stdin: true})
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_CloseStdin{CloseStdin: true}})
		s.waitOutput("end")
		for _, sig := range []int32{0, -1, 65, 1 << 20, 15} { // those that are none are dropped
			s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Signal{Signal: sig}})
		}
		if exit := s.end(); exit.GetCode() != 143 || exit.GetSignal() != 15 {
			t.Errorf("exit %v", exit)
		}
	})
	t.Run("command that closes its input", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{Args: []string{"sh", "-c", "exec <&-; echo closed; exec sleep 1000"}, Stdin: true})
		s.waitOutput("closed")
		s.stdin("nobody reads this")
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Signal{Signal: 9}})
		if exit := s.end(); exit.GetSignal() != 9 {
			t.Errorf("exit %v", exit)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{
			Args: []string{"sh", "-c", "stty size; read x; stty size"}, Stdin: true, Tty: true, Size: &bangerv1.WindowSize{Rows: 10, Cols: 20},
		})
		s.waitOutput("10 20")
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Resize{Resize: &bangerv1.WindowSize{Rows: 1 << 16, Cols: 1}}}) // dropped
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Resize{Resize: &bangerv1.WindowSize{Rows: 30, Cols: 40}}})
		s.stdin("\n")
		if exit := s.end(); exit.GetCode() != 0 || !strings.Contains(s.out, "30 40") {
			t.Errorf("exit %v, %q", exit, s.out)
		}
	})
}

func (b *bed) mustVanish(name string) {
	b.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		_, err := b.api.VMs.Get(b.Context(), connect.NewRequest(&bangerv1.GetRequest{Vm: name}))
		if fault.Is(err, fault.NotFound) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("VM %s is still there (%v)", name, err)
		}
	}
}

func (b *bed) get(name string) *bangerv1.VM {
	b.Helper()
	res, err := b.api.VMs.Get(b.Context(), connect.NewRequest(&bangerv1.GetRequest{Vm: name}))
	if err != nil {
		b.Fatal(err)
	}
	return res.Msg.GetVm()
}

func TestRun(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]bool{"ephemeral": true, "to stay": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			s := b.run(t.Context(), remove, "sh", "-c", "echo out; exit 5")
			if exit := s.end(); exit.GetCode() != 5 || s.out != "out\n" || s.vm.GetName() != "a" || s.vm.GetEphemeral() != remove ||
				s.vm.GetState() != "running" || !strings.Contains(s.stages, "boot;") {
				t.Errorf("exit %v, %q, VM %v, stages %q", exit, s.out, s.vm, s.stages)
			}
			if remove { // before the call has ended, not some time after
				if _, err := b.api.VMs.Get(t.Context(), connect.NewRequest(&bangerv1.GetRequest{Vm: "a"})); !fault.Is(err, fault.NotFound) {
					t.Errorf("the VM after its command: %v", err)
				}
			} else if vm := b.get("a"); vm.GetState() != "running" {
				t.Errorf("the VM is %s", vm.GetState())
			}
		})
	}
}

func TestRunOfNoCommand(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	_, err := b.run(t.Context(), true, "no-such-command").next(never)
	if remote, ok := errors.AsType[*rpcclient.Remote](err); !ok || remote.Kind != rpcclient.KindCommandNotFound {
		t.Errorf("run: %v", err)
	}
	b.mustVanish("a")
}

func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]bool{"ephemeral": true, "to stay": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// The path makes the command one that the check at the end finds.
			s := b.run(ctx, remove, "cat", "-", b.path("none"))
			s.stdin("hello\n")
			s.waitOutput("hello")
			cancel()
			if remove {
				b.mustVanish("a")
				return
			}
			for deadline := time.Now().Add(20 * time.Second); len(leftBy(b.path("none"))) > 0; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the command goes on without its client")
				}
			}
			if vm := b.get("a"); vm.GetState() != "running" {
				t.Errorf("the VM is %s", vm.GetState())
			}
		})
	}
}

func TestClientGoesAwayDuringTheStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.guestScript("exec sleep 1000\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := b.run(ctx, true, "true")
	if _, err := s.next(func() bool { return strings.HasSuffix(s.stages, "boot;") }); err != nil {
		t.Fatal(err)
	}
	cancel()
	b.mustVanish("a")
}

func TestRunThatFailsToStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.guestScript("echo the disk is on fire; exit 3\n")
	_, err := b.run(t.Context(), true, "true").next(never)
	if err == nil || !strings.Contains(err.Error(), "the disk is on fire") || fault.HintOf(err) == "" {
		t.Errorf("run: %v", err)
	}
	// It is kept for whoever wants to know why.
	if vm := b.get("a"); vm.GetState() != string(microvm.Failed) || vm.GetCause() == "" {
		t.Errorf("the VM is %s (%s)", vm.GetState(), vm.GetCause())
	}
	if got := b.logs("a", false); !strings.Contains(got, "the disk is on fire") {
		t.Errorf("logs: %q", got)
	}
}

// TestSomeoneElseStopsAnEphemeralVM: the operation under way does not keep the VM from going away.
func TestSomeoneElseStopsAnEphemeralVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.guestScript(guestExe + ` "$@" &` + "\nexec 3<&-; wait; exec sleep 1000\n") // the agent goes, the machine does not
	s := b.run(t.Context(), true, "cat", "-", b.path("none"))
	s.stdin("hello\n")
	s.waitOutput("hello")
	stopped := make(chan error, 1)
	go func() {
		_, _, err := events(b.api.VMs.Stop(t.Context(), connect.NewRequest(&bangerv1.StopRequest{Vm: "a", Timeout: durationpb.New(1500 * time.Millisecond)})))
		stopped <- err
	}()
	if exit, err := s.next(never); err == nil {
		t.Errorf("the command ended with %v", exit)
	}
	if err := <-stopped; err != nil && !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	b.mustVanish("a")
}

func (b *bed) logs(vm string, follow bool) string {
	b.Helper()
	stream, err := b.api.VMs.Logs(b.Context(), connect.NewRequest(&bangerv1.LogsRequest{Vm: vm, Follow: follow}))
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close() //nolint:errcheck // Err tells
	var out []byte
	for stream.Receive() {
		out = append(out, stream.Msg().GetData()...)
	}
	if err := stream.Err(); err != nil {
		b.Errorf("logs: %v", err)
	}
	return string(out)
}

func TestLogs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.guestScript("echo booting; exec " + guestExe + ` "$@"` + "\n")
	b.create("a", false)
	for _, follow := range []bool{false, true} {
		if got := b.logs("a", follow); got != "" {
			t.Errorf("logs of a VM that has never run, follow %t: %q", follow, got)
		}
	}
	if _, _, err := events(b.api.VMs.Start(t.Context(), connect.NewRequest(&bangerv1.StartRequest{Vm: "a"}))); err != nil {
		t.Fatal(err)
	}
	if got := b.logs("a", false); got != "booting\n" {
		t.Errorf("logs while it runs: %q", got)
	}
	followed := make(chan string, 1)
	go func() { followed <- b.logs("a", true) }()
	select {
	case got := <-followed:
		t.Errorf("the following ended while the VM runs: %q", got)
	case <-time.After(100 * time.Millisecond):
	}
	if _, _, err := events(b.api.VMs.Stop(t.Context(), connect.NewRequest(&bangerv1.StopRequest{Vm: "a"}))); err != nil {
		t.Fatal(err)
	}
	if got := <-followed; got != "booting\n" {
		t.Errorf("followed: %q", got)
	}
	if got := b.logs("a", true); got != "booting\n" {
		t.Errorf("logs after the end: %q", got)
	}
	stream, err := b.api.VMs.Logs(t.Context(), connect.NewRequest(&bangerv1.LogsRequest{Vm: "none"}))
	if err == nil {
		stream.Receive()
		err = stream.Err()
	}
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("logs of no VM: %v", err)
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	// Descriptor 4 is the console (package fakevmm).
	b.guestScript("while read line <&4; do echo \"got $line\"; done &\nexec " + guestExe + ` "$@"` + "\n")
	b.create("a", true)
	stream := b.api.VMs.Console(t.Context())
	if err := stream.Send(&bangerv1.ConsoleRequest{Kind: &bangerv1.ConsoleRequest_Vm{Vm: "a"}}); err != nil {
		t.Fatal(err)
	}
	if res, err := stream.Receive(); err != nil || len(res.GetOutput()) > 0 {
		t.Fatalf("the sign that it is attached: %v, %v", res, err)
	}
	if err := stream.Send(&bangerv1.ConsoleRequest{Kind: &bangerv1.ConsoleRequest_Input{Input: []byte("hello\n")}}); err != nil {
		t.Fatal(err)
	}
	var out string
	for !strings.Contains(out, "got hello\n") {
		res, err := stream.Receive()
		if err != nil {
			t.Fatalf("after %q: %v", out, err)
		}
		out += string(res.GetOutput())
	}
	// The loop still holds the guest's end of the console when the guest has shut down.
	if vm, _, err := events(b.api.VMs.Stop(t.Context(), connect.NewRequest(&bangerv1.StopRequest{Vm: "a"}))); err != nil || vm.GetCause() != "stopped" {
		t.Fatalf("stop: %v, %v", vm, err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the VM's end: %v", err)
	}
	stream = b.api.VMs.Console(t.Context())
	_ = stream.Send(&bangerv1.ConsoleRequest{Kind: &bangerv1.ConsoleRequest_Vm{Vm: "a"}})
	if _, err := stream.Receive(); !fault.Is(err, fault.Precondition) {
		t.Errorf("console of a stopped VM: %v", err)
	}
}
