package rpcapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/operations"
)

// attachStream is one call that runs a command. Sending is safe from any goroutine.
type attachStream struct {
	mu     sync.Mutex
	stream *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]
}

func (a *attachStream) send(m *bangerv1.AttachResponse) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stream.Send(m)
}

// progress drops what cannot be sent: the end of the client's context tells the work.
func (a *attachStream) progress(p *bangerv1.Progress) error {
	_ = a.send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Progress{Progress: p}})
	return nil
}

// first reads the message that says what to do.
func (a *attachStream) first() (*bangerv1.AttachStart, error) {
	req, err := a.stream.Receive()
	if err != nil {
		return nil, fault.New(fault.Invalid, "the stream holds no request: %w", err)
	}
	if req.GetStart() == nil {
		return nil, fault.New(fault.Invalid, "the first message is not the start message")
	}
	return req.GetStart(), nil
}

// Exec implements the call of the same name.
func (v *VMs) Exec(ctx context.Context, stream *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) error {
	a := &attachStream{stream: stream}
	start, err := a.first()
	if err != nil {
		return toError(err)
	}
	return toError(v.exec(ctx, a, start.GetVm(), start.GetExec()))
}

// removeTimeout bounds the deletion of a VM whose command has ended.
const removeTimeout = time.Minute

// Run implements the call of the same name.
func (v *VMs) Run(ctx context.Context, stream *connect.BidiStream[bangerv1.AttachRequest, bangerv1.AttachResponse]) (err error) {
	a := &attachStream{stream: stream}
	start, err := a.first()
	if err != nil {
		return toError(err)
	}
	create := start.GetCreate()
	if create == nil {
		return toError(fault.New(fault.Invalid, "the start message does not say what VM to create"))
	}
	if _, err := fromExec(start.GetExec(), nil); err != nil { // before a VM is made for it
		return toError(err)
	}
	create.Start = true
	info, err := v.createFor(ctx, a, create, start.GetRemove())
	if start.GetRemove() && info.ID != "" {
		defer func() { err = toError(errors.Join(err, v.remove(ctx, info, err))) }()
	}
	if err != nil {
		return toError(err)
	}
	if err := a.send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Vm{Vm: toVM(info)}}); err != nil {
		return err
	}
	exec := start.GetExec()
	if program := info.Spec.ImageConfig.Program(); exec != nil && len(exec.GetArgs()) == 0 {
		exec.Args = program
	}
	return toError(v.exec(ctx, a, string(info.ID), exec))
}

// createFor creates and starts a VM for a client that waits for it: the operation is cancelled when the client goes away.
func (v *VMs) createFor(ctx context.Context, a *attachStream, req *bangerv1.CreateRequest, ephemeral bool) (machines.Info, error) {
	var info machines.Info
	op, err := v.operations.Start(ctx, operations.Request{Kind: "run", Name: req.GetName()},
		func(ctx context.Context, op *operations.Operation) (err error) {
			info, err = v.create(ctx, op, req, ephemeral)
			return err
		})
	if err != nil {
		return info, err
	}
	defer context.AfterFunc(ctx, func() { op.Cancel(fault.New(fault.Canceled, "its client has gone away")) })()
	err = relay(context.WithoutCancel(ctx), op, a.progress) // to the end, so that it is known what there is to remove
	return info, err
}

// remove deletes the VM of a finished Run, as an operation of its own. One whose start failed is kept for whoever wants to
// know why, unless the client is gone.
func (v *VMs) remove(ctx context.Context, info machines.Info, failure error) error {
	gone := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if failure != nil && !gone {
		if now, err := v.machines.Get(ctx, string(info.ID)); err == nil && now.State == microvm.Failed {
			return nil
		}
	}
	err := perform(ctx, v, "delete", string(info.ID), func(ctx context.Context, id string) error {
		ctx, cancel := context.WithTimeout(ctx, removeTimeout)
		defer cancel()
		err := v.machines.Delete(ctx, id, true)
		for fault.Is(err, fault.Busy) && ctx.Err() == nil { // Delete itself waits a while before it says so
			err = v.machines.Delete(ctx, id, true)
		}
		return err
	})
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil // someone else was quicker
	}
	return err
}

// exec runs a command in a VM and connects it with the client.
func (v *VMs) exec(ctx context.Context, a *attachStream, ref string, spec *bangerv1.ExecSpec) error {
	vm, guest, err := v.machines.Guest(ctx, ref)
	if err != nil {
		return err
	}
	cmd, err := fromExec(spec, vm.Spec.Env)
	if err != nil {
		return err
	}
	elsewhere := cmd
	inWorkspace(ctx, v.workspaces, vm, &cmd, func(p *bangerv1.Progress) { _ = a.progress(p) })
	p, err := guest.Start(ctx, machines.Command(vm.Spec.ImageConfig, cmd))
	if fault.Is(err, fault.Precondition) && cmd.Dir != elsewhere.Dir { // it has been taken away in the guest
		p, err = guest.Start(ctx, machines.Command(vm.Spec.ImageConfig, elsewhere))
	}
	switch guestlink.StartStatus(err) {
	case guestlink.StatusNotFound:
		return newError(connect.CodeNotFound, kindCommandNotFound, err)
	case guestlink.StatusNotExecutable:
		return newError(connect.CodePermissionDenied, kindCommandNotExecutable, err)
	}
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // ends the command if it still runs
	started := &bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Started{Started: int64(p.Pid())}}
	if err := a.send(started); err != nil {
		return err
	}
	in := startInput(a, p)
	defer in.stop()
	for {
		ev, err := p.Recv()
		if err != nil {
			return err
		}
		if ev.Kind == guestproto.EventExit {
			in.stop() // nothing comes after the exit
		}
		if err := a.send(toAttachResponse(ev)); err != nil || ev.Kind == guestproto.EventExit {
			return err
		}
	}
}

func toAttachResponse(ev guestproto.ExecEvent) *bangerv1.AttachResponse {
	switch ev.Kind {
	case guestproto.EventStdout:
		return &bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Stdout{Stdout: ev.Data}}
	case guestproto.EventStderr:
		return &bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Stderr{Stderr: ev.Data}}
	case guestproto.EventExit:
	}
	return &bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_Exit{Exit: &bangerv1.ExitStatus{
		Code: int32(ev.Exit.Code), Signal: int32(ev.Exit.Signal), // small, checked by guestlink
	}}}
}
