package rpcapi

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/machines"
	"banger/internal/progress"
)

// stopTimeout reads how long a guest may take to shut down.
func stopTimeout(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return defaultStopTimeout, nil
	}
	t := d.AsDuration()
	if t < 0 {
		return 0, fault.New(fault.Invalid, "bad timeout %s", t)
	}
	return t, nil
}

// Restart implements the call of the same name.
func (v *VMs) Restart(
	ctx context.Context, req *connect.Request[bangerv1.RestartRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	timeout, err := stopTimeout(req.Msg.GetTimeout())
	if err != nil {
		return toError(err)
	}
	return v.operate(ctx, stream, "restart", req.Msg.GetVm(),
		func(ctx context.Context, id string, report progress.Sink) (machines.Info, error) {
			return v.machines.Restart(ctx, id, timeout, report)
		})
}

// Kill implements the call of the same name.
func (v *VMs) Kill(
	ctx context.Context, req *connect.Request[bangerv1.KillRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return v.operate(ctx, stream, "kill", req.Msg.GetVm(),
		func(ctx context.Context, id string, _ progress.Sink) (machines.Info, error) {
			return v.machines.Kill(ctx, id, unix.Signal(req.Msg.GetSignal()))
		})
}

// Pause implements the call of the same name.
func (v *VMs) Pause(
	ctx context.Context, req *connect.Request[bangerv1.PauseRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return v.operate(ctx, stream, "pause", req.Msg.GetVm(),
		func(ctx context.Context, id string, _ progress.Sink) (machines.Info, error) {
			return v.machines.Pause(ctx, id)
		})
}

// Resume implements the call of the same name.
func (v *VMs) Resume(
	ctx context.Context, req *connect.Request[bangerv1.ResumeRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return v.operate(ctx, stream, "resume", req.Msg.GetVm(),
		func(ctx context.Context, id string, _ progress.Sink) (machines.Info, error) {
			return v.machines.Resume(ctx, id)
		})
}

// Wait implements the call of the same name.
func (v *VMs) Wait(ctx context.Context, req *connect.Request[bangerv1.WaitRequest]) (*connect.Response[bangerv1.WaitResponse], error) {
	info, err := v.machines.Wait(ctx, req.Msg.GetVm(), req.Msg.GetCondition())
	if err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.WaitResponse{Vm: toVM(info)}), nil
}

// Health implements the call of the same name.
func (v *VMs) Health(
	ctx context.Context, req *connect.Request[bangerv1.HealthRequest],
) (*connect.Response[bangerv1.HealthResponse], error) {
	checks, err := v.machines.Health(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.HealthResponse{Healthy: true}
	for _, c := range checks {
		check := &bangerv1.Check{Name: c.Name, Result: Pass, Detail: c.Detail}
		if c.Err != nil {
			res.Healthy = false
			check.Result, check.Detail, check.Fix = Fail, c.Err.Error(), fault.HintOf(c.Err)
		}
		res.Checks = append(res.Checks, check)
	}
	return connect.NewResponse(res), nil
}
