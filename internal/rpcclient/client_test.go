package rpcclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
)

// TestMain lets this test's binary be a daemon, as banger's is: "daemon HOW DIRECTORY".
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "daemon" {
		os.Exit(daemonMain(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// daemonMain behaves at its start as told. It never lives for more than a minute.
func daemonMain(how, dir string) int {
	n, err := strconv.Atoi(os.Getenv(ReadyFDVariable))
	if err != nil {
		return 9
	}
	ready := os.NewFile(uintptr(n), "ready")
	switch how {
	case "fails":
		_, _ = fmt.Fprintln(ready, "error: no disk")
		return 1
	case "dies":
		return 3
	case "babbles":
		_, _ = fmt.Fprintln(ready, "hello")
		return 0
	case "hangs":
		time.Sleep(time.Minute)
		return 0
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 8
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_, _ = fmt.Fprintln(ready, "error: already running")
		return 1
	}
	time.Sleep(100 * time.Millisecond) // the lock is held, nobody listens yet
	socket := filepath.Join(dir, "s")
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return 7
	}
	_, _ = fmt.Fprintln(ready, "ready")
	_ = ready.Close()
	time.AfterFunc(time.Minute, func() { os.Exit(0) })
	_ = server(&fakeDaemon{}).Serve(l)
	return 0
}

type fakeDaemon struct {
	bangerv1connect.UnimplementedVMServiceHandler
	bangerv1connect.UnimplementedSystemServiceHandler
	status func(context.Context) error
	exec   func(context.Context, *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error
}

func (f *fakeDaemon) Status(
	ctx context.Context, _ *connect.Request[bangerv1.StatusRequest],
) (*connect.Response[bangerv1.StatusResponse], error) {
	if f.status != nil {
		if err := f.status(ctx); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&bangerv1.StatusResponse{Pid: int64(os.Getpid())}), nil
}

func (f *fakeDaemon) Exec(ctx context.Context, s *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
	return f.exec(ctx, s)
}

func server(f *fakeDaemon) *http.Server {
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewVMServiceHandler(f))
	mux.Handle(bangerv1connect.NewSystemServiceHandler(f))
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{Handler: mux, Protocols: &protocols, ReadHeaderTimeout: time.Minute}
}

// place makes a directory with a path that is short enough for a socket.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bgr") //nolint:usetesting // the test's name would make the path of a socket too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func serve(t *testing.T, f *fakeDaemon) Options {
	t.Helper()
	o := Options{Socket: filepath.Join(place(t), "s"), Log: "the-log"}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := server(f)
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { _ = srv.Close(); done.Wait() })
	return o
}

// starter returns options that start a daemon which behaves as told.
func starter(t *testing.T, how string) Options {
	t.Helper()
	dir := place(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{Socket: filepath.Join(dir, "s"), Log: filepath.Join(dir, "log"), Start: []string{exe, "daemon", how, dir}}
}

func end(t *testing.T, c *Client) {
	t.Helper()
	if err := syscall.Kill(int(c.Status.GetPid()), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	o := starter(t, "works")
	c, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.Status.GetPid()
	c.Close()

	// The second finds the first's daemon.
	c, err = Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Status.GetPid() != pid {
		t.Errorf("a second daemon was started")
	}
	end(t, c)
}

func TestStartOverStaleSocket(t *testing.T) {
	t.Parallel()
	o := starter(t, "works")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := Connect(t.Context(), Options{Socket: o.Socket}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without leave to start one: %v", err)
	}
	c, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	end(t, c)
}

func TestStartRace(t *testing.T) {
	t.Parallel()
	o := starter(t, "works")
	const racers = 10
	clients := make([]*Client, racers)
	errs := make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { clients[i], errs[i] = Connect(t.Context(), o) })
	}
	wg.Wait()
	var first *Client
	for i, c := range clients {
		switch {
		case errs[i] != nil:
			t.Error(errs[i])
		case first == nil:
			first = c
		case c.Status.GetPid() != first.Status.GetPid():
			t.Error("two daemons")
		}
	}
	if first != nil {
		end(t, first)
	}
	for _, c := range clients {
		if c != nil {
			c.Close()
		}
	}
}

func TestFailedStart(t *testing.T) {
	t.Parallel()
	for how, want := range map[string]string{
		"fails":   "the daemon did not start: no disk",
		"dies":    "the daemon did not start: it ended before it was ready (exit status 3)",
		"babbles": `the daemon did not start: it said "hello"`,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			o := starter(t, how)
			_, err := Connect(t.Context(), o)
			if !fault.Is(err, fault.Unavailable) || err.Error() != want || !strings.Contains(fault.HintOf(err), o.Log) {
				t.Errorf("%v (%s), want %s", err, fault.HintOf(err), want)
			}
		})
	}
}

func TestInterruptedStart(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	time.AfterFunc(100*time.Millisecond, func() { cancel(cause) })
	began := time.Now()
	if _, err := Connect(ctx, starter(t, "hangs")); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestNotRunning(t *testing.T) {
	t.Parallel()
	_, err := Connect(t.Context(), Options{Socket: filepath.Join(place(t), "s")})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "not running") {
		t.Errorf("%v", err)
	}
	_, err = Connect(t.Context(), Options{Socket: "/" + strings.Repeat("x", 200)})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(fault.HintOf(err), "XDG_RUNTIME_DIR") {
		t.Errorf("a long path: %v (%s)", err, fault.HintOf(err))
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	detailed := func(code connect.Code, d *bangerv1.ErrorDetail) error {
		e := connect.NewError(code, errors.New("words"))
		if d != nil {
			detail, err := connect.NewErrorDetail(d)
			if err != nil {
				t.Fatal(err)
			}
			e.AddDetail(detail)
		}
		return e
	}
	for name, tc := range map[string]struct {
		sent error
		kind fault.Kind
		hint string // part of it
		raw  string
	}{
		"detail":         {detailed(connect.CodeInternal, &bangerv1.ErrorDetail{Kind: "busy", Hint: "wait", VmId: "v", OperationId: "o"}), fault.Busy, "wait", "busy"},
		"not found":      {detailed(connect.CodeNotFound, &bangerv1.ErrorDetail{Kind: KindCommandNotFound}), fault.NotFound, "", KindCommandNotFound},
		"not executable": {detailed(connect.CodeUnknown, &bangerv1.ErrorDetail{Kind: KindCommandNotExecutable}), fault.Denied, "", KindCommandNotExecutable},
		"no detail":      {detailed(connect.CodeFailedPrecondition, nil), fault.Precondition, "", ""},
		"unimplemented":  {detailed(connect.CodeUnimplemented, nil), fault.Unsupported, "daemon stop", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failing := false
			o := serve(t, &fakeDaemon{
				status: func(context.Context) error {
					if failing {
						return tc.sent
					}
					return nil
				},
				exec: func(context.Context, *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
					return tc.sent
				},
			})
			c, err := Connect(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			failing = true
			_, unary := c.System.Status(t.Context(), connect.NewRequest(&bangerv1.StatusRequest{}))
			stream := c.VMs.Exec(t.Context())
			_ = stream.Send(&bangerv1.AttachRequest{})
			_, streamed := stream.Receive()
			for _, err := range []error{unary, streamed} {
				r, ok := errors.AsType[*Remote](err)
				if !fault.Is(err, tc.kind) || err.Error() != "words" || !strings.Contains(fault.HintOf(err), tc.hint) || !ok || r.Kind != tc.raw {
					t.Errorf("%v: kind %s, hint %q, remote %+v", err, fault.KindOf(err), fault.HintOf(err), r)
				}
			}
		})
	}
}

// TestEveryKind wants every kind of error to come through as itself.
func TestEveryKind(t *testing.T) {
	t.Parallel()
	for _, k := range fault.Kinds() {
		if got := kindOfName(k.String()); got != k {
			t.Errorf("%s comes through as %s", k, got)
		}
	}
}

func TestCancelReachesDaemon(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	o := serve(t, &fakeDaemon{exec: func(ctx context.Context, s *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
		defer close(gone)
		if err := s.Send(&bangerv1.AttachResponse{}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	c, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	stream := c.VMs.Exec(ctx)
	if err := stream.Send(&bangerv1.AttachRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := stream.Receive(); !fault.Is(err, fault.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the daemon goes on")
	}
}

func TestBrokenConnection(t *testing.T) {
	t.Parallel()
	o := serve(t, &fakeDaemon{exec: func(context.Context, *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
		panic(http.ErrAbortHandler)
	}})
	c, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stream := c.VMs.Exec(t.Context())
	_ = stream.Send(&bangerv1.AttachRequest{})
	if _, err := stream.Receive(); !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.HintOf(err), "daemon logs") {
		t.Errorf("%v: kind %s, hint %q", err, fault.KindOf(err), fault.HintOf(err))
	}
}
