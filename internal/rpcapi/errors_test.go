package rpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

func TestEveryKindHasACode(t *testing.T) {
	t.Parallel()
	seen := map[connect.Code]fault.Kind{}
	for _, k := range fault.Kinds() {
		code, ok := codes[k]
		if !ok {
			t.Errorf("%s has no code", k)
		}
		if other, taken := seen[code]; taken {
			t.Errorf("%s and %s have the code %s", k, other, code)
		}
		seen[code] = k
	}
	if len(codes) != len(fault.Kinds()) {
		t.Errorf("%d codes for %d kinds", len(codes), len(fault.Kinds()))
	}
	for theirs, ours := range map[string]string{
		rpcclient.KindCommandNotFound: kindCommandNotFound, rpcclient.KindCommandNotExecutable: kindCommandNotExecutable,
	} {
		if theirs != ours {
			t.Errorf("the client knows %q, the server says %q", theirs, ours)
		}
	}
}

func TestErrorsAreTranslatedOnce(t *testing.T) {
	t.Parallel()
	if err := toError(nil); err != nil {
		t.Error(err)
	}
	once := toError(fault.New(fault.Busy, "busy"))
	if twice := toError(once); !errors.Is(twice, once) || connect.CodeOf(twice) != connect.CodeAborted {
		t.Errorf("translated twice: %v", twice)
	}
	if joined := toError(errors.Join(once, io.EOF)); connect.CodeOf(joined) != connect.CodeAborted {
		t.Errorf("joined: %v", joined)
	}
}

// stubSystem answers the status call with an error, or a panic.
type stubSystem struct{ fail func() error }

func (s stubSystem) Status(ctx context.Context) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, err
	}
	return Status{Version: "v1", Pid: 7}, s.fail()
}

func (stubSystem) Doctor(_ context.Context, fix bool) Report {
	return Report{Leftovers: []*bangerv1.Leftover{{Kind: "directory", Mended: fix}}, Checks: []Check{{Name: "kvm", Result: Warn, Detail: "d", Fix: "f"}}, Sources: map[string]string{"vm.memory": "file"}}
}

func (stubSystem) Shutdown() {}

// serveStub serves an API of which only the system is there, and returns a client of it.
func serveStub(t *testing.T, s System) *rpcclient.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "ra") //nolint:usetesting // the test's name would make the path of a socket too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: Handler(Services{System: s}), Protocols: &protocols} // a test's client is not slow
	go server.Serve(ln)                                                                  //nolint:errcheck // ends with the test
	t.Cleanup(func() { _ = server.Close() })
	c, err := rpcclient.Connect(t.Context(), rpcclient.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestErrorsReachTheClient sends each kind of error over the wire.
func TestErrorsReachTheClient(t *testing.T) {
	t.Parallel()
	var answer error
	c := serveStub(t, stubSystem{func() error { return answer }})
	ask := func() error {
		_, err := c.System.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
		return err
	}
	for _, k := range fault.Kinds() {
		answer = fmt.Errorf("ask: %w", fault.New(k, "it is %s: é", k).WithHint("do %s", k))
		err := ask()
		if fault.KindOf(err) != k || fault.HintOf(err) != "do "+k.String() || err.Error() != answer.Error() {
			t.Errorf("%s came as %s: %v (hint %q)", k, fault.KindOf(err), err, fault.HintOf(err))
		}
	}
	for name, c := range map[string]struct {
		err  error
		kind fault.Kind
	}{
		"unclassified": {errors.New("odd"), fault.Internal},
		"cancelled":    {context.Canceled, fault.Canceled},
		"deadline":     {fmt.Errorf("wait: %w", context.DeadlineExceeded), fault.Timeout},
		"several lines": {
			errors.Join(errors.New("one"), fault.New(fault.Busy, "two\nthree \x00 %%")), fault.Busy,
		},
	} {
		answer = c.err
		if err := ask(); !fault.Is(err, c.kind) || err.Error() != c.err.Error() || fault.HintOf(err) != "" {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	answer = nil
	if err := ask(); err != nil {
		t.Error(err)
	}
}

func TestDefectIsAnErrorOfOneCall(t *testing.T) {
	t.Parallel()
	broken := false
	c := serveStub(t, stubSystem{func() error {
		if broken {
			panic("oh no")
		}
		return nil
	}})
	broken = true
	_, err := c.System.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
	if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "oh no") {
		t.Errorf("a panic came as %v", err)
	}
	broken = false
	if _, err := c.System.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{})); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	c := serveStub(t, stubSystem{func() error { return nil }})
	res, err := c.System.Doctor(t.Context(), connect.NewRequest(&bangerv1.DoctorRequest{Fix: true}))
	if err != nil {
		t.Fatal(err)
	}
	if left := res.Msg.GetLeftovers(); len(left) != 1 || left[0].GetKind() != "directory" || !left[0].GetMended() {
		t.Errorf("leftovers: %+v", left)
	}
	if checks := res.Msg.GetChecks(); len(checks) != 1 || checks[0].GetName() != "kvm" || checks[0].GetResult() != "warn" || checks[0].GetFix() != "f" ||
		res.Msg.GetDefaultSources()["vm.memory"] != "file" {
		t.Errorf("doctor: %+v", res.Msg)
	}
}

func TestWindowSize(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		size *bangerv1.WindowSize
		ok   bool
	}{
		"none":      {nil, true},
		"usual":     {&bangerv1.WindowSize{Rows: 24, Cols: 80}, true},
		"largest":   {&bangerv1.WindowSize{Rows: 65535, Cols: 65535}, true},
		"many rows": {&bangerv1.WindowSize{Rows: 65536, Cols: 80}, false},
		"many cols": {&bangerv1.WindowSize{Rows: 24, Cols: 1 << 31}, false},
	} {
		rows, cols, err := fromSize(c.size)
		if (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want ok = %t", name, err, c.ok)
		}
		if err == nil && (uint32(rows) != c.size.GetRows() || uint32(cols) != c.size.GetCols()) {
			t.Errorf("%s: %dx%d", name, rows, cols)
		}
		if _, err := fromExec(&bangerv1.ExecSpec{Size: c.size}, nil); (err == nil) != c.ok {
			t.Errorf("%s, of a command: %v", name, err)
		}
	}
}

func TestCommandsEnvironmentWins(t *testing.T) {
	t.Parallel()
	spec, err := fromExec(&bangerv1.ExecSpec{Args: []string{"x"}, Env: []string{"A=2"}}, map[string]string{"A": "1"})
	if err != nil || len(spec.Env) != 2 || spec.Env[0] != "A=1" || spec.Env[1] != "A=2" {
		t.Errorf("environment: %v, %v", spec.Env, err)
	}
}
