package rpcapi

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
	"banger/internal/guestproto"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/operations"
	"banger/internal/progress"
	"banger/internal/workspaces"
)

// workspaceServer serves the workspace service.
type workspaceServer struct {
	bangerv1connect.UnimplementedWorkspaceServiceHandler // for what this version does not have

	machines   *machines.Service
	workspaces *workspaces.Service
	operations *operations.Registry
}

// Prepare implements the call of the same name.
func (s workspaceServer) Prepare(
	ctx context.Context, req *connect.Request[bangerv1.PrepareWorkspaceRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	vm, err := s.machines.Get(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "workspace", VM: vm.ID, Name: vm.Name},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			w, err := prepare(ctx, s.machines, s.workspaces, string(vm.ID), req.Msg.GetSource(), op.Report)
			return &bangerv1.Event{Kind: &bangerv1.Event_Workspace{Workspace: toWorkspace(w)}}, err
		})
}

// prepare puts a workspace into a running VM.
func prepare(
	ctx context.Context, vms *machines.Service, ws *workspaces.Service, ref string, source *bangerv1.WorkspaceSource, report progress.Sink,
) (workspaces.Workspace, error) {
	vm, guest, err := vms.Guest(ctx, ref)
	if err != nil {
		return workspaces.Workspace{}, err
	}
	info, err := vms.Get(ctx, string(vm.ID))
	if err != nil {
		return workspaces.Workspace{}, err
	}
	return ws.Prepare(ctx, workspaces.VM{ID: vm.ID, Name: vm.Name, Directory: info.Directory, Guest: guest}, fromSource(source), report)
}

func fromSource(s *bangerv1.WorkspaceSource) workspaces.Request {
	return workspaces.Request{Copy: s.GetCopy(), Source: workspaces.Source{
		Path: s.GetPath(), Full: s.GetFull(), Untracked: s.GetIncludeUntracked(), Branch: s.GetBranch(), From: s.GetFrom(),
	}}
}

func toWorkspace(w workspaces.Workspace) *bangerv1.Workspace {
	return &bangerv1.Workspace{
		VmId: string(w.VM), GuestDir: w.GuestDir, HostPath: w.HostPath, Copied: w.Copied, Head: w.Head, Branch: w.Branch, Tree: w.Tree,
		PreparedAt: toTime(w.PreparedAt),
	}
}

// filesPerMessage bounds how many files of a plan go into one message.
const filesPerMessage = 1000

// Plan implements the call of the same name.
func (s workspaceServer) Plan(
	ctx context.Context, req *connect.Request[bangerv1.PlanWorkspaceRequest], stream *connect.ServerStream[bangerv1.PlanWorkspaceResponse],
) error {
	plan, err := s.workspaces.Plan(ctx, fromSource(req.Msg.GetSource()))
	if err != nil {
		return toError(err)
	}
	first := &bangerv1.PlanWorkspaceResponse{GuestDir: plan.GuestDir, Head: plan.Head, Branch: plan.Branch, Notices: plan.Notices}
	if err := stream.Send(first); err != nil {
		return err
	}
	for files := plan.Files; len(files) > 0; {
		n := min(len(files), filesPerMessage)
		m := &bangerv1.PlanWorkspaceResponse{}
		for _, f := range files[:n] {
			m.Files = append(m.Files, &bangerv1.WorkspaceFile{Path: []byte(f.Path), Size: f.Size})
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		files = files[n:]
	}
	return nil
}

// Get implements the call of the same name.
func (s workspaceServer) Get(
	ctx context.Context, req *connect.Request[bangerv1.GetWorkspaceRequest],
) (*connect.Response[bangerv1.GetWorkspaceResponse], error) {
	vm, err := s.machines.Get(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	w, err := s.workspaces.Get(ctx, vm.ID)
	if err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.GetWorkspaceResponse{Workspace: toWorkspace(w)}), nil
}

// headTimeout bounds the look at the host's repository for a notice.
const headTimeout = time.Second

// inWorkspace gives a command of root's that names no directory the VM's workspace, and tells if the host's repository
// has moved on since.
func inWorkspace(ctx context.Context, ws *workspaces.Service, vm microvm.VM, cmd *guestproto.ExecSpec, tell func(*bangerv1.Progress)) {
	user := cmd.User
	if user == "" {
		user = vm.Spec.ImageConfig.User
	}
	if ws == nil || cmd.Dir != "" || user != "" && user != "root" && user != "0" {
		return // others may not enter root's home
	}
	w, err := ws.Get(ctx, vm.ID)
	if err != nil {
		return // mostly because there is none; a command needs none
	}
	cmd.Dir = w.GuestDir
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	if ws.Moved(ctx, w) {
		tell(toProgress(progress.Update{Stage: "check workspace", Ended: true, Warning: "HEAD of " + w.HostPath + " has moved on since it was put into VM " + vm.Name}))
	}
}

// checkWorkspace refuses a VM that could not be given the workspace that it is to have.
func checkWorkspace(ctx context.Context, ws *workspaces.Service, req *bangerv1.CreateRequest) error {
	source := req.GetWorkspace()
	switch {
	case source == nil:
		return nil
	case !req.GetStart():
		return fault.New(fault.Invalid, "a workspace needs a VM that is started").WithHint("start it, then: banger vm workspace prepare")
	}
	return ws.Check(ctx, fromSource(source))
}
