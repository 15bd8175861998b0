package rpcapi

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/operations"
	"banger/internal/progress"
	"banger/internal/workspaces"
)

// VMs serves the VM service.
type VMs struct {
	guests

	workspaces *workspaces.Service
	operations *operations.Registry
}

// defaultStopTimeout is how long a guest may take to shut down unless the client says otherwise.
const defaultStopTimeout = 10 * time.Second

// operate serves a long call about a VM that there is.
func (v *VMs) operate(
	ctx context.Context, stream *connect.ServerStream[bangerv1.Event], kind, ref string,
	work func(ctx context.Context, id string, report progress.Sink) (machines.Info, error),
) error {
	vm, err := v.machines.Get(ctx, ref)
	if err != nil {
		return toError(err)
	}
	return operate(ctx, v.operations, stream, operations.Request{Kind: kind, VM: vm.ID, Name: vm.Name},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			info, err := work(ctx, string(vm.ID), op.Report)
			return vmEvent(info), err
		})
}

func vmEvent(info machines.Info) *bangerv1.Event {
	return &bangerv1.Event{Kind: &bangerv1.Event_Vm{Vm: toVM(info)}}
}

// Create implements the call of the same name.
func (v *VMs) Create(
	ctx context.Context, req *connect.Request[bangerv1.CreateRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return operate(ctx, v.operations, stream, operations.Request{Kind: "create", Name: req.Msg.GetName()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			info, err := v.create(ctx, op, req.Msg, false)
			return vmEvent(info), err
		})
}

// create makes a VM and starts it if that is asked for. A VM that was made and did not start is returned, too.
func (v *VMs) create(
	ctx context.Context, op *operations.Operation, req *bangerv1.CreateRequest, ephemeral bool,
) (machines.Info, error) {
	if err := checkWorkspace(ctx, v.workspaces, req); err != nil { // before a VM is made for it
		return machines.Info{}, err
	}
	spec := fromSpec(req.GetSpec())
	published, err := microvm.ParsePublished(req.GetSpec().GetPublish())
	if err != nil {
		return machines.Info{}, err
	}
	spec.Publish = published
	spec.Main = fromProcess(req.GetMain())
	vm, err := v.machines.Create(ctx, machines.CreateRequest{
		Name: req.GetName(), Spec: spec, Ephemeral: ephemeral, Template: req.GetStart() && !req.GetNoTemplate(),
	}, op.Report)
	if err != nil {
		return machines.Info{}, err
	}
	op.About(vm.ID, vm.Name)
	if req.GetStart() {
		info, err := v.machines.Start(ctx, string(vm.ID), op.Report)
		info.ID = vm.ID
		if err == nil && !req.GetNoTemplate() {
			machines.TemplatesOf(v.machines).Prepare(info.VM)
		}
		if err == nil && req.GetWorkspace() != nil {
			_, err = prepare(ctx, v.machines, v.workspaces, string(vm.ID), req.GetWorkspace(), op.Report)
		}
		return info, err
	}
	return v.machines.Get(ctx, string(vm.ID))
}

// Start implements the call of the same name.
func (v *VMs) Start(
	ctx context.Context, req *connect.Request[bangerv1.StartRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return v.operate(ctx, stream, "start", req.Msg.GetVm(), v.machines.Start)
}

// Stop implements the call of the same name.
func (v *VMs) Stop(
	ctx context.Context, req *connect.Request[bangerv1.StopRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	timeout, err := stopTimeout(req.Msg.GetTimeout())
	if err != nil {
		return toError(err)
	}
	return v.operate(ctx, stream, "stop", req.Msg.GetVm(),
		func(ctx context.Context, id string, report progress.Sink) (machines.Info, error) {
			return v.machines.Stop(ctx, id, timeout, report)
		})
}

// Delete implements the call of the same name.
func (v *VMs) Delete(
	ctx context.Context, req *connect.Request[bangerv1.DeleteRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return v.operate(ctx, stream, "delete", req.Msg.GetVm(),
		func(ctx context.Context, id string, _ progress.Sink) (machines.Info, error) {
			info, err := v.machines.Get(ctx, id)
			if err != nil {
				return info, err
			}
			return info, v.machines.Delete(ctx, id, req.Msg.GetForce())
		})
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
