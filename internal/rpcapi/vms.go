package rpcapi

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
	"banger/internal/machines"
	"banger/internal/progress"
)

// VMs serves the VM service.
type VMs struct {
	bangerv1connect.UnimplementedVMServiceHandler // for what this version does not have

	machines *machines.Service
}

// NewVMs returns the server of the VM service.
func NewVMs(m *machines.Service) *VMs { return &VMs{machines: m} }

// defaultStopTimeout is how long a guest may take to shut down unless the client says otherwise.
const defaultStopTimeout = 10 * time.Second

// eventStream sends events of one long call; progress may come from any goroutine.
type eventStream struct {
	mu     sync.Mutex
	stream *connect.ServerStream[bangerv1.Event]
}

func (e *eventStream) send(ev *bangerv1.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stream.Send(ev)
}

// sink drops what cannot be sent: the end of the client's context tells the work.
func (e *eventStream) sink() progress.Sink {
	return func(u progress.Update) {
		_ = e.send(&bangerv1.Event{Kind: &bangerv1.Event_Progress{Progress: toProgress(u)}})
	}
}

func (e *eventStream) finish(info machines.Info, err error) error {
	if err != nil {
		return toError(err)
	}
	return e.send(&bangerv1.Event{Kind: &bangerv1.Event_Vm{Vm: toVM(info)}})
}

// Create implements the call of the same name.
func (v *VMs) Create(
	ctx context.Context, req *connect.Request[bangerv1.CreateRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	events := &eventStream{stream: stream}
	info, err := v.create(ctx, req.Msg, false, events.sink())
	return events.finish(info, err)
}

func (v *VMs) create(ctx context.Context, req *bangerv1.CreateRequest, ephemeral bool, report progress.Sink) (machines.Info, error) {
	vm, err := v.machines.Create(ctx, machines.CreateRequest{
		Name: req.GetName(), Spec: fromSpec(req.GetSpec()), Ephemeral: ephemeral,
	}, report)
	if err != nil {
		return machines.Info{}, err
	}
	if req.GetStart() {
		info, err := v.machines.Start(ctx, string(vm.ID), report)
		info.ID = vm.ID
		return info, err
	}
	return v.machines.Get(ctx, string(vm.ID))
}

// Start implements the call of the same name.
func (v *VMs) Start(
	ctx context.Context, req *connect.Request[bangerv1.StartRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	events := &eventStream{stream: stream}
	info, err := v.machines.Start(ctx, req.Msg.GetVm(), events.sink())
	return events.finish(info, err)
}

// Stop implements the call of the same name.
func (v *VMs) Stop(
	ctx context.Context, req *connect.Request[bangerv1.StopRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	timeout := defaultStopTimeout
	if t := req.Msg.GetTimeout(); t != nil {
		if timeout = t.AsDuration(); timeout < 0 {
			return toError(fault.New(fault.Invalid, "bad timeout %s", timeout))
		}
	}
	events := &eventStream{stream: stream}
	info, err := v.machines.Stop(ctx, req.Msg.GetVm(), timeout, events.sink())
	return events.finish(info, err)
}

// Delete implements the call of the same name.
func (v *VMs) Delete(
	ctx context.Context, req *connect.Request[bangerv1.DeleteRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	info, err := v.machines.Get(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	events := &eventStream{stream: stream}
	return events.finish(info, v.machines.Delete(ctx, string(info.ID), req.Msg.GetForce()))
}

// List implements the call of the same name.
func (v *VMs) List(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.ListResponse], error) {
	infos, err := v.machines.List(ctx)
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.ListResponse{}
	for _, info := range infos {
		res.Vms = append(res.Vms, toVM(info))
	}
	return connect.NewResponse(res), nil
}

// Get implements the call of the same name.
func (v *VMs) Get(ctx context.Context, req *connect.Request[bangerv1.GetRequest]) (*connect.Response[bangerv1.GetResponse], error) {
	info, err := v.machines.Get(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.GetResponse{Vm: toVM(info)}), nil
}

// Logs implements the call of the same name.
func (v *VMs) Logs(
	ctx context.Context, req *connect.Request[bangerv1.LogsRequest], stream *connect.ServerStream[bangerv1.LogsResponse],
) error {
	path, live, err := v.machines.Logs(ctx, req.Msg.GetVm(), req.Msg.GetFollow())
	if err != nil {
		return toError(err)
	}
	var source io.ReadCloser = live
	if live == nil {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil // it has never run
		}
		if err != nil {
			return toError(err)
		}
		source = f
	}
	defer source.Close() //nolint:errcheck // read only
	defer context.AfterFunc(ctx, func() { _ = source.Close() })()
	return toError(copyTo(source, func(p []byte) error { return stream.Send(&bangerv1.LogsResponse{Data: p}) }))
}

// copyTo sends what a reader yields in pieces until its end.
func copyTo(r io.Reader, send func([]byte) error) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil //nolint:nilerr // however the source ends, that was it
		}
	}
}

// Console implements the call of the same name.
func (v *VMs) Console(ctx context.Context, stream *connect.BidiStream[bangerv1.ConsoleRequest, bangerv1.ConsoleResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return toError(fault.New(fault.Invalid, "the stream holds no request: %w", err))
	}
	conn, err := v.machines.Console(ctx, first.GetVm())
	if err != nil {
		return toError(err)
	}
	defer conn.Close() //nolint:errcheck // nothing to flush
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	// Headers go out now, so that the client knows that it is attached before the guest prints anything.
	if err := stream.Send(&bangerv1.ConsoleResponse{}); err != nil {
		return toError(err)
	}
	go func() {
		defer conn.Close() //nolint:errcheck // as above
		for {
			req, err := stream.Receive()
			if err != nil {
				return
			}
			if _, err := conn.Write(req.GetInput()); err != nil {
				return
			}
		}
	}()
	return toError(copyTo(conn, func(p []byte) error { return stream.Send(&bangerv1.ConsoleResponse{Output: p}) }))
}
