package rpcapi

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/machines"
	"banger/internal/operations"
)

// snapshotServer serves the snapshot service.
type snapshotServer struct {
	machines   *machines.Service
	operations *operations.Registry
}

// about makes a request for an operation on a VM that there is.
func (s snapshotServer) about(ctx context.Context, kind, ref string) (operations.Request, error) {
	vm, err := s.machines.Get(ctx, ref)
	return operations.Request{Kind: kind, VM: vm.ID, Name: vm.Name}, err
}

func (s snapshotServer) Fork(
	ctx context.Context, req *connect.Request[bangerv1.ForkRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	about, err := s.about(ctx, "fork", req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, about, func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
		made, err := machines.PointsOf(s.machines).Fork(ctx, string(about.VM), machines.ForkRequest{
			Names: req.Msg.GetNames(), Count: int(req.Msg.GetCount()), Labels: req.Msg.GetLabels(),
		}, op.Report)
		if len(made) == 0 {
			return nil, err
		}
		result := &bangerv1.ForkResult{}
		for _, info := range made {
			result.Vms = append(result.Vms, toVM(info))
		}
		if err != nil {
			result.Errors = strings.Split(err.Error(), "\n")
		}
		return &bangerv1.Event{Kind: &bangerv1.Event_Forks{Forks: result}}, nil
	})
}

func (s snapshotServer) CreateSnapshot(
	ctx context.Context, req *connect.Request[bangerv1.CreateSnapshotRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	about, err := s.about(ctx, "snapshot", req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, about, func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
		made, err := machines.PointsOf(s.machines).CreateSnapshot(ctx, string(about.VM), req.Msg.GetName(), op.Report)
		if err != nil {
			return nil, err
		}
		return &bangerv1.Event{Kind: &bangerv1.Event_Snapshot{Snapshot: toSnapshot(made)}}, nil
	})
}

func toSnapshot(s machines.Snapshot) *bangerv1.Snapshot {
	return &bangerv1.Snapshot{
		Name: s.Name, Vm: s.VM, CreatedAt: toTime(s.Created), Size: s.Size, Memory: s.Memory, Vcpus: int32(s.VCPUs), // few
		Backend: s.Backend, Version: s.Version, Problem: s.Problem,
	}
}

func (s snapshotServer) ListSnapshots(
	ctx context.Context, req *connect.Request[bangerv1.ListSnapshotsRequest],
) (*connect.Response[bangerv1.ListSnapshotsResponse], error) {
	all, err := machines.PointsOf(s.machines).Snapshots(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.ListSnapshotsResponse{}
	for _, one := range all {
		res.Snapshots = append(res.Snapshots, toSnapshot(one))
	}
	return connect.NewResponse(res), nil
}

func (s snapshotServer) DeleteSnapshot(
	ctx context.Context, req *connect.Request[bangerv1.DeleteSnapshotRequest],
) (*connect.Response[bangerv1.DeleteSnapshotResponse], error) {
	if err := machines.PointsOf(s.machines).DeleteSnapshot(ctx, req.Msg.GetVm(), req.Msg.GetName()); err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.DeleteSnapshotResponse{}), nil
}

func (s snapshotServer) RestoreSnapshot(
	ctx context.Context, req *connect.Request[bangerv1.RestoreSnapshotRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	about, err := s.about(ctx, "restore", req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, about, func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
		info, err := machines.PointsOf(s.machines).Restore(ctx, string(about.VM), machines.RestoreRequest{
			Snapshot: req.Msg.GetName(), As: req.Msg.GetAs(), Force: req.Msg.GetForce(),
		}, op.Report)
		return vmEvent(info), err
	})
}

// templateServer serves the template service.
type templateServer struct {
	machines   *machines.Service
	operations *operations.Registry
}

func toTemplate(t machines.Template) *bangerv1.Template {
	return &bangerv1.Template{
		Id: t.ID, Image: t.Spec.Image, Kernel: t.Spec.Kernel, Vcpus: int32(t.Spec.VCPUs), Memory: t.Spec.Memory, Init: string(t.Spec.Init), // few
		Backend: t.Backend, Version: t.Version, Size: t.Size, CreatedAt: toTime(t.Created), LastUsedAt: toTime(t.LastUsed), Problem: t.Problem,
	}
}

func (s templateServer) ListTemplates(
	ctx context.Context, _ *connect.Request[bangerv1.ListTemplatesRequest],
) (*connect.Response[bangerv1.ListTemplatesResponse], error) {
	all, err := machines.TemplatesOf(s.machines).List(ctx)
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.ListTemplatesResponse{}
	for _, t := range all {
		res.Templates = append(res.Templates, toTemplate(t))
	}
	return connect.NewResponse(res), nil
}

func (s templateServer) BuildTemplate(
	ctx context.Context, req *connect.Request[bangerv1.BuildTemplateRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return operate(ctx, s.operations, stream, operations.Request{Kind: "build template", Name: req.Msg.GetSpec().GetImage()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			t, err := machines.TemplatesOf(s.machines).Build(ctx, fromSpec(req.Msg.GetSpec()), op.Report)
			if err != nil {
				return nil, err
			}
			return &bangerv1.Event{Kind: &bangerv1.Event_Template{Template: toTemplate(t)}}, nil
		})
}

func (s templateServer) DeleteTemplate(
	ctx context.Context, req *connect.Request[bangerv1.DeleteTemplateRequest],
) (*connect.Response[bangerv1.DeleteTemplateResponse], error) {
	id, err := machines.TemplatesOf(s.machines).Delete(ctx, req.Msg.GetId())
	if err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.DeleteTemplateResponse{Id: id}), nil
}
