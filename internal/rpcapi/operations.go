package rpcapi

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/operations"
)

// operate serves a long call: it does the work as an operation and sends its progress, then the event that the work
// returns. The first event has nothing but the operation's id. The operation goes on when the client has gone away.
func operate(
	ctx context.Context, reg *operations.Registry, stream *connect.ServerStream[bangerv1.Event], req operations.Request,
	work func(context.Context, *operations.Operation) (*bangerv1.Event, error),
) error {
	var result *bangerv1.Event
	op, err := reg.Start(ctx, req, func(ctx context.Context, op *operations.Operation) (err error) {
		result, err = work(ctx, op)
		return err
	})
	if err != nil {
		return toError(err)
	}
	send := func(ev *bangerv1.Event) error {
		ev.OperationId = op.ID()
		return stream.Send(ev)
	}
	if err := send(&bangerv1.Event{}); err != nil {
		return err
	}
	err = relay(ctx, op, func(p *bangerv1.Progress) error {
		return send(&bangerv1.Event{Kind: &bangerv1.Event_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return send(result)
}

// perform serves a call with one answer, about a VM that there is: it does the work as an operation. The operation goes on
// when the client has gone away.
func perform(ctx context.Context, v *VMs, kind, ref string, work func(ctx context.Context, id string) error) error {
	vm, err := v.machines.Get(ctx, ref)
	if err != nil {
		return toError(err)
	}
	op, err := v.operations.Start(ctx, operations.Request{Kind: kind, VM: vm.ID, Name: vm.Name},
		func(ctx context.Context, _ *operations.Operation) error { return work(ctx, string(vm.ID)) })
	if err != nil {
		return toError(err)
	}
	return relay(ctx, op, func(*bangerv1.Progress) error { return nil })
}

// relay passes an operation's progress on until it has ended, and returns the error that it ended with.
func relay(ctx context.Context, op *operations.Operation, send func(*bangerv1.Progress) error) error {
	var last operations.Snapshot
	err := op.Watch(ctx, func(s operations.Snapshot) error {
		for _, stage := range s.Stages {
			if stage.Version <= last.Version {
				continue
			}
			if err := send(toProgress(stage.Update)); err != nil {
				return err
			}
		}
		last = s
		return nil
	})
	switch {
	case err != nil:
		return toError(err)
	case last.Err != nil:
		kind := fault.KindOf(last.Err)
		return detailedError(codes[kind], &bangerv1.ErrorDetail{
			Kind: kind.String(), Hint: fault.HintOf(last.Err), OperationId: last.ID, VmId: string(last.VM),
		}, last.Err)
	}
	return nil
}

// operationServer serves the operation service.
type operationServer struct{ registry *operations.Registry }

func (s operationServer) ListOperations(
	context.Context, *connect.Request[bangerv1.ListOperationsRequest],
) (*connect.Response[bangerv1.ListOperationsResponse], error) {
	res := &bangerv1.ListOperationsResponse{}
	for _, op := range s.registry.List() {
		res.Operations = append(res.Operations, toOperation(op))
	}
	return connect.NewResponse(res), nil
}

func (s operationServer) WatchOperation(
	ctx context.Context, req *connect.Request[bangerv1.WatchOperationRequest], stream *connect.ServerStream[bangerv1.Operation],
) error {
	op, err := s.registry.Find(req.Msg.GetId())
	if err != nil {
		return toError(err)
	}
	return toError(op.Watch(ctx, func(s operations.Snapshot) error { return stream.Send(toOperation(s)) }))
}

func (s operationServer) CancelOperation(
	_ context.Context, req *connect.Request[bangerv1.CancelOperationRequest],
) (*connect.Response[bangerv1.CancelOperationResponse], error) {
	op, err := s.registry.Find(req.Msg.GetId())
	if err != nil {
		return nil, toError(err)
	}
	op.Cancel(fault.New(fault.Canceled, "operation %s was cancelled", op.ID()))
	return connect.NewResponse(&bangerv1.CancelOperationResponse{}), nil
}

func toOperation(s operations.Snapshot) *bangerv1.Operation {
	op := &bangerv1.Operation{
		Id: s.ID, Kind: s.Kind, VmId: string(s.VM), VmName: s.Name, State: string(s.State),
		StartedAt: toTime(s.Started), EndedAt: toTime(s.Ended),
	}
	for _, stage := range s.Stages {
		op.Stages = append(op.Stages, &bangerv1.OperationStage{
			Progress: toProgress(stage.Update), StartedAt: toTime(stage.Started),
		})
	}
	if s.Err != nil {
		op.Error, op.ErrorKind = s.Err.Error(), fault.KindOf(s.Err).String()
	}
	return op
}
