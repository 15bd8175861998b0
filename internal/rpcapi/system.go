package rpcapi

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
	"banger/internal/images"
	"banger/internal/journal"
	"banger/internal/kernels"
	"banger/internal/machines"
	"banger/internal/operations"
	"banger/internal/workspaces"
)

// Check is one requirement and whether it is met.
type Check struct {
	Name, Result, Detail, Fix string
}

// Results of a check.
const (
	Pass = "pass"
	Warn = "warn"
	Fail = "fail"
)

// System is what the daemon says of itself.
type System interface {
	Status(ctx context.Context) (Status, error)
	// Doctor checks everything and, if fix is set, sees to what is left over.
	Doctor(ctx context.Context, fix bool) Report
	// Shutdown begins the daemon's end and returns at once.
	Shutdown()
}

// Status is the daemon's state.
type Status struct {
	Version        string
	Pid            int
	StartedAt      time.Time
	ResidentMemory int64 // bytes
	VMs, Running   int
	Socket         string
	StateDirectory string
	ConfigFile     string
}

// Report is the result of the checks.
type Report struct {
	Checks    []Check
	Defaults  *bangerv1.Spec
	Sources   map[string]string // setting -> where its value comes from
	Leftovers []*bangerv1.Leftover
}

// systemServer serves the system service.
type systemServer struct{ system System }

func (s systemServer) Status(
	ctx context.Context, _ *connect.Request[bangerv1.StatusRequest],
) (*connect.Response[bangerv1.StatusResponse], error) {
	st, err := s.system.Status(ctx)
	if err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.StatusResponse{
		Version: st.Version, Pid: int64(st.Pid), StartedAt: toTime(st.StartedAt), ResidentMemory: st.ResidentMemory,
		Vms: int32(st.VMs), Running: int32(st.Running), Socket: st.Socket, // counts of VMs
		StateDirectory: st.StateDirectory, ConfigFile: st.ConfigFile,
	}), nil
}

func (s systemServer) Doctor(
	ctx context.Context, req *connect.Request[bangerv1.DoctorRequest],
) (*connect.Response[bangerv1.DoctorResponse], error) {
	report := s.system.Doctor(ctx, req.Msg.GetFix())
	res := &bangerv1.DoctorResponse{Defaults: report.Defaults, DefaultSources: report.Sources, Leftovers: report.Leftovers}
	for _, c := range report.Checks {
		res.Checks = append(res.Checks, &bangerv1.Check{Name: c.Name, Result: c.Result, Detail: c.Detail, Fix: c.Fix})
	}
	return connect.NewResponse(res), nil
}

func (s systemServer) Shutdown(
	context.Context, *connect.Request[bangerv1.ShutdownRequest],
) (*connect.Response[bangerv1.ShutdownResponse], error) {
	s.system.Shutdown()
	return connect.NewResponse(&bangerv1.ShutdownResponse{}), nil
}

// imageServer serves the image service.
type imageServer struct {
	images     *images.Store
	kernels    *kernels.Store
	machines   *machines.Service
	operations *operations.Registry
}

// Services is what the API is an API of.
type Services struct {
	Machines   *machines.Service
	Images     *images.Store
	Kernels    *kernels.Store
	Workspaces *workspaces.Service
	Operations *operations.Registry
	Journal    *journal.Journal
	System     System
}

// Handler returns the whole API as one HTTP handler.
func Handler(s Services) http.Handler {
	mux := http.NewServeMux()
	options := []connect.HandlerOption{
		connect.WithRecover(func(ctx context.Context, spec connect.Spec, _ http.Header, value any) error {
			return recoverPanic(ctx, spec, value)
		}),
		connect.WithReadMaxBytes(maxMessage),
	}
	mux.Handle(bangerv1connect.NewVMServiceHandler(&VMs{guests: guests{machines: s.Machines}, workspaces: s.Workspaces, operations: s.Operations}, options...))
	mux.Handle(bangerv1connect.NewImageServiceHandler(imageServer{s.Images, s.Kernels, s.Machines, s.Operations}, options...))
	mux.Handle(bangerv1connect.NewKernelServiceHandler(kernelServer{s.Kernels, s.Operations}, options...))
	mux.Handle(bangerv1connect.NewWorkspaceServiceHandler(workspaceServer{
		machines: s.Machines, workspaces: s.Workspaces, operations: s.Operations,
	}, options...))
	mux.Handle(bangerv1connect.NewSnapshotServiceHandler(snapshotServer{s.Machines, s.Operations}, options...))
	mux.Handle(bangerv1connect.NewTemplateServiceHandler(templateServer{s.Machines, s.Operations}, options...))
	mux.Handle(bangerv1connect.NewOperationServiceHandler(operationServer{s.Operations}, options...))
	mux.Handle(bangerv1connect.NewEventServiceHandler(eventServer{s.Journal}, options...))
	mux.Handle(bangerv1connect.NewSystemServiceHandler(systemServer{s.System}, options...))
	return mux
}

// maxMessage bounds a message from a client, in bytes.
const maxMessage = 4 << 20
