package rpcapi

import (
	"context"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/machines"
	"banger/internal/microvm"
)

// Set implements the call of the same name.
func (v *VMs) Set(ctx context.Context, req *connect.Request[bangerv1.SetRequest]) (*connect.Response[bangerv1.SetResponse], error) {
	m := req.Msg
	change := machines.SetRequest{
		Memory: m.Memory, DiskSize: m.DiskSize, Labels: m.GetLabels(), RemoveLabels: m.GetRemoveLabels(),
	}
	if m.Vcpus != nil {
		n := int(m.GetVcpus())
		change.VCPUs = &n
	}
	if m.GetTtl() != nil {
		d := m.GetTtl().AsDuration()
		change.TTL = &d
	}
	if m.GetIdleTimeout() != nil {
		d := m.GetIdleTimeout().AsDuration()
		change.IdleTimeout = &d
	}
	change.Weights = microvm.Weights{CPU: int(m.GetCpuWeight()), IO: int(m.GetIoWeight())}
	var info machines.Info
	var results []machines.SetResult
	err := perform(ctx, v, "set", m.GetVm(), func(ctx context.Context, id string) (err error) {
		info, results, err = v.machines.Set(ctx, id, change)
		return err
	})
	if err != nil {
		return nil, err
	}
	res := &bangerv1.SetResponse{Vm: toVM(info)}
	for _, r := range results {
		res.Results = append(res.Results, &bangerv1.SetResult{
			Key: r.Key, Value: r.Value, Effect: string(r.Effect), Detail: r.Detail,
		})
	}
	return connect.NewResponse(res), nil
}
