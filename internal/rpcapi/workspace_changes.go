package rpcapi

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/operations"
	"banger/internal/workspaces"
)

// diffStream is one call that sends a patch. Sending is safe from any goroutine.
type diffStream struct {
	mu     sync.Mutex
	stream *connect.ServerStream[bangerv1.DiffWorkspaceResponse]
}

func (d *diffStream) send(m *bangerv1.DiffWorkspaceResponse) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stream.Send(m)
}

// Write sends a piece of the patch.
func (d *diffStream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, maxChunk)
		err := d.send(&bangerv1.DiffWorkspaceResponse{Kind: &bangerv1.DiffWorkspaceResponse_Data{Data: p[done : done+n]}})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// progress drops what cannot be sent: the end of the client's context tells the work.
func (d *diffStream) progress(p *bangerv1.Progress) error {
	_ = d.send(&bangerv1.DiffWorkspaceResponse{Kind: &bangerv1.DiffWorkspaceResponse_Progress{Progress: p}})
	return nil
}

// Diff implements the call of the same name. It ends with its client.
func (s workspaceServer) Diff(
	ctx context.Context, req *connect.Request[bangerv1.DiffWorkspaceRequest],
	stream *connect.ServerStream[bangerv1.DiffWorkspaceResponse],
) error {
	vm, err := s.vm(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	out := &diffStream{stream: stream}
	changed := false
	op, err := s.operations.Start(ctx, operations.Request{Kind: "diff", VM: vm.ID, Name: vm.Name},
		func(ctx context.Context, op *operations.Operation) (err error) {
			changed, err = s.workspaces.Diff(ctx, vm, req.Msg.GetStat(), out, op.Report)
			return err
		})
	if err != nil {
		return toError(err)
	}
	defer context.AfterFunc(ctx, func() { op.Cancel(errClientGone()) })()
	if err := relay(context.WithoutCancel(ctx), op, out.progress); err != nil {
		return err
	}
	return out.send(&bangerv1.DiffWorkspaceResponse{Kind: &bangerv1.DiffWorkspaceResponse_Changed{Changed: changed}})
}

// Export implements the call of the same name.
func (s workspaceServer) Export(
	ctx context.Context, req *connect.Request[bangerv1.ExportWorkspaceRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	if req.Msg.GetBranch() == "" {
		return toError(fault.New(fault.Invalid, "export needs the name of a branch"))
	}
	vm, err := s.vm(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "export", VM: vm.ID, Name: vm.Name},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			b, err := s.workspaces.Export(ctx, vm, req.Msg.GetBranch(), req.Msg.GetForce(), op.Report)
			return &bangerv1.Event{Kind: &bangerv1.Event_Branch{Branch: &bangerv1.WorkspaceBranch{
				Ref: b.Ref, Commit: b.Commit, Commits: int32(b.Commits), //nolint:gosec // a count of commits
			}}}, err
		})
}

// Apply implements the call of the same name.
func (s workspaceServer) Apply(
	ctx context.Context, req *connect.Request[bangerv1.ApplyWorkspaceRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	vm, err := s.vm(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "apply", VM: vm.ID, Name: vm.Name},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			a, err := s.workspaces.Apply(ctx, vm, req.Msg.GetDryRun(), op.Report)
			return mergeEvent(a), err
		})
}

func mergeEvent(a workspaces.Applied) *bangerv1.Event {
	m := &bangerv1.WorkspaceMerge{}
	for _, p := range a.Changed {
		m.Changed = append(m.Changed, []byte(p))
	}
	for _, p := range a.Conflicts {
		m.Conflicts = append(m.Conflicts, []byte(p))
	}
	return &bangerv1.Event{Kind: &bangerv1.Event_Merge{Merge: m}}
}

// vm returns a running VM, as the service of workspaces wants it.
func (s workspaceServer) vm(ctx context.Context, ref string) (workspaces.VM, error) {
	vm, guest, err := s.machines.Guest(ctx, ref)
	if err != nil {
		return workspaces.VM{}, err
	}
	info, err := s.machines.Get(ctx, string(vm.ID))
	if err != nil {
		return workspaces.VM{}, err
	}
	return workspaces.VM{ID: vm.ID, Name: vm.Name, Directory: info.Directory, Guest: guest}, nil
}
