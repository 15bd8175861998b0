package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
	"banger/internal/version"
)

// fakeDaemon serves the API from functions; a call without one is unimplemented.
type fakeDaemon struct {
	bangerv1connect.UnimplementedVMServiceHandler
	bangerv1connect.UnimplementedImageServiceHandler
	bangerv1connect.UnimplementedSystemServiceHandler

	vms     []*bangerv1.VM
	version string
	attach  func(ctx context.Context, s *attached) error // Run and Exec, after the start message
	long    func(verb, vm string, send func(*bangerv1.Event) error) error
	doctor  *bangerv1.DoctorResponse
	console func(s *connect.BidiStream[bangerv1.ConsoleRequest, bangerv1.ConsoleResponse]) error
	logs    func(send func([]byte) error) error
	stats   func(r *bangerv1.StatsRequest, send func(*bangerv1.StatsResponse) error) error
	ports   []*bangerv1.Port
	extra   func(*http.ServeMux) // more services
}

// attached is the daemon's end of a session.
type attached struct {
	*connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]
	start *bangerv1.AttachStart
}

func (s *attached) started() error {
	return errors.Join(s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Started{Started: 1}}), s.credit(64<<10))
}

func (s *attached) credit(n int) error {
	return s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_StdinCredit{StdinCredit: int64(n)}})
}

func (s *attached) stdout(text string) error {
	return s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Stdout{Stdout: []byte(text)}})
}

func (s *attached) stderr(text string) error {
	return s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Stderr{Stderr: []byte(text)}})
}

func (s *attached) exit(code int32) error {
	return s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Exit{Exit: &bangerv1.ExitStatus{Code: code}}})
}

func (s *attached) progress(p *bangerv1.Progress) error {
	return s.Send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Progress{Progress: p}})
}

func (f *fakeDaemon) session(ctx context.Context, stream *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	return f.attach(ctx, &attached{stream, first.GetStart()})
}

func (f *fakeDaemon) Run(ctx context.Context, s *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
	return f.session(ctx, s)
}

func (f *fakeDaemon) Exec(ctx context.Context, s *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
	return f.session(ctx, s)
}

func (f *fakeDaemon) Console(_ context.Context, s *connect.BidiStream[bangerv1.ConsoleRequest, bangerv1.ConsoleResponse]) error {
	return f.console(s)
}

func (f *fakeDaemon) Create(_ context.Context, r *connect.Request[bangerv1.CreateRequest], s *connect.ServerStream[bangerv1.Event]) error {
	if err := f.long("create", r.Msg.GetName(), s.Send); err != nil {
		return err
	}
	return s.Send(&bangerv1.Event{Kind: &bangerv1.Event_Vm{Vm: &bangerv1.VM{Id: "0123456789ab", Name: r.Msg.GetName(), Spec: r.Msg.GetSpec()}}})
}

func (f *fakeDaemon) Start(_ context.Context, r *connect.Request[bangerv1.StartRequest], s *connect.ServerStream[bangerv1.Event]) error {
	return f.long("start", r.Msg.GetVm(), s.Send)
}

func (f *fakeDaemon) Stop(_ context.Context, r *connect.Request[bangerv1.StopRequest], s *connect.ServerStream[bangerv1.Event]) error {
	return f.long("stop", r.Msg.GetVm(), s.Send)
}

func (f *fakeDaemon) Delete(_ context.Context, r *connect.Request[bangerv1.DeleteRequest], s *connect.ServerStream[bangerv1.Event]) error {
	return f.long("delete", r.Msg.GetVm(), s.Send)
}

func (f *fakeDaemon) List(context.Context, *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ListResponse], error) {
	return connect.NewResponse(&bangerv1.ListResponse{Vms: f.vms}), nil
}

func (f *fakeDaemon) Get(_ context.Context, r *connect.Request[bangerv1.GetRequest]) (*connect.Response[bangerv1.GetResponse], error) {
	for _, vm := range f.vms {
		if vm.GetId() == r.Msg.GetVm() {
			return connect.NewResponse(&bangerv1.GetResponse{Vm: vm}), nil
		}
	}
	return nil, remoteError(connect.CodeNotFound, "not-found", "gone", "")
}

func (f *fakeDaemon) Logs(_ context.Context, _ *connect.Request[bangerv1.LogsRequest], s *connect.ServerStream[bangerv1.LogsResponse]) error {
	return f.logs(func(data []byte) error { return s.Send(&bangerv1.LogsResponse{Data: data}) })
}

func (f *fakeDaemon) ListImages(
	context.Context, *connect.Request[bangerv1.ListImagesRequest],
) (*connect.Response[bangerv1.ListImagesResponse], error) {
	return connect.NewResponse(&bangerv1.ListImagesResponse{Images: []*bangerv1.Image{
		{Name: "alpine", Digest: "sha256:0123456789abcdef0123", Size: 8 << 20, Source: "registry"}, {Name: "debian-bookworm"},
	}}), nil
}

func (f *fakeDaemon) PullImage(
	_ context.Context, r *connect.Request[bangerv1.PullImageRequest], s *connect.ServerStream[bangerv1.Event],
) error {
	if r.Msg.GetName() == "nonesuch" {
		return remoteError(connect.CodeNotFound, "not-found", "no such image", "look: banger image list")
	}
	return s.Send(&bangerv1.Event{Kind: &bangerv1.Event_Image{Image: &bangerv1.Image{Name: r.Msg.GetName(), Digest: "sha256:01"}}})
}

func (f *fakeDaemon) Status(
	context.Context, *connect.Request[bangerv1.StatusRequest],
) (*connect.Response[bangerv1.StatusResponse], error) {
	v := f.version
	if v == "" {
		v = version.Get().String()
	}
	return connect.NewResponse(&bangerv1.StatusResponse{Version: v, Pid: 4711, Vms: 2, Running: 1}), nil
}

func (f *fakeDaemon) Doctor(
	context.Context, *connect.Request[bangerv1.DoctorRequest],
) (*connect.Response[bangerv1.DoctorResponse], error) {
	return connect.NewResponse(f.doctor), nil
}

func remoteError(code connect.Code, kind, message, hint string) error {
	e := connect.NewError(code, errors.New(message))
	d, err := connect.NewErrorDetail(&bangerv1.ErrorDetail{Kind: kind, Hint: hint})
	if err != nil {
		return err
	}
	e.AddDetail(d)
	return e
}

// bench is a place to run commands in: directories of its own, and perhaps a daemon.
type bench struct {
	t       *testing.T
	env     map[string]string
	signals chan os.Signal
	stdin   io.Reader
	stdout  io.Writer // nil: captured
	stderr  io.Writer // nil: captured
}

// newBench makes a bench with a daemon, or without one if f is nil.
func newBench(t *testing.T, f *fakeDaemon) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "bgr") //nolint:usetesting // the test's name would make the path of a socket too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bench{t: t, signals: make(chan os.Signal, 8), stdin: bytes.NewReader(nil), env: map[string]string{
		"HOME": dir, "XDG_RUNTIME_DIR": dir, "TERM": "xterm",
	}}
	if f != nil {
		b.serve(filepath.Join(dir, "banger"), f)
	}
	return b
}

func (b *bench) serve(dir string, f *fakeDaemon) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(b.t.Context(), "unix", filepath.Join(dir, "banger.sock"))
	if err != nil {
		b.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(bangerv1connect.NewVMServiceHandler(f))
	mux.Handle(bangerv1connect.NewImageServiceHandler(f))
	mux.Handle(bangerv1connect.NewSystemServiceHandler(f))
	if f.extra != nil {
		f.extra(mux)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: &protocols, ReadHeaderTimeout: time.Minute}
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(l) })
	b.t.Cleanup(func() { _ = srv.Close(); done.Wait() })
}

type result struct {
	status         int
	stdout, stderr string
}

// run runs one command line to its end.
func (b *bench) run(args ...string) result {
	b.t.Helper()
	var out, errs bytes.Buffer
	sys := System{
		Stdin: b.stdin, Stdout: &out, Stderr: &errs, Signals: b.signals,
		LookupEnv: func(name string) (string, bool) { v, ok := b.env[name]; return v, ok },
	}
	if b.stdout != nil {
		sys.Stdout = b.stdout
	}
	if b.stderr != nil {
		sys.Stderr = b.stderr
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	status := Main(ctx, args, Roots{}, sys)
	if ctx.Err() != nil {
		b.t.Errorf("banger %v hangs", args)
	}
	return result{status, out.String(), errs.String()}
}

func (r result) want(t *testing.T, status int, stdout, stderr string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d", r.status, status)
	}
	if r.stdout != stdout {
		t.Errorf("stdout:\n%q, want\n%q", r.stdout, stdout)
	}
	if r.stderr != stderr {
		t.Errorf("stderr:\n%q, want\n%q", r.stderr, stderr)
	}
}
