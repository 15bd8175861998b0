package rpcapi

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/machines"
)

// Stats implements the call of the same name.
func (v *VMs) Stats(
	ctx context.Context, req *connect.Request[bangerv1.StatsRequest], stream *connect.ServerStream[bangerv1.StatsResponse],
) error {
	return toError(v.machines.Stats(ctx, machines.StatsRequest{
		VMs: req.Msg.GetVms(), History: req.Msg.GetHistory(), Follow: req.Msg.GetFollow(),
	}, func(s machines.VMSample) error {
		return stream.Send(&bangerv1.StatsResponse{VmId: string(s.ID), Name: s.Name, Sample: toSample(s)})
	}))
}

// toSample leaves out what only the guest can tell if it has not.
func toSample(s machines.VMSample) *bangerv1.Sample {
	out := &bangerv1.Sample{
		At: timestamppb.New(s.Time()), VmmCpu: durationpb.New(time.Duration(s.VMMCPU)), VmmResident: s.VMMResident,
		NetReceived: s.NetReceived, NetSent: s.NetSent, NetDenied: s.NetDenied, DiskAllocated: s.DiskUsed,
		CpuPercent: s.CPUPercent,
	}
	if s.HasGuest {
		out.GuestCpu = durationpb.New(time.Duration(s.GuestCPU))
		out.GuestMemory, out.GuestMemoryTotal = s.GuestMemory, s.GuestTotal
		out.DiskRead, out.DiskWritten, out.Processes = s.GuestRead, s.GuestWritten, s.Processes
	}
	return out
}

// Ports implements the call of the same name.
func (v *VMs) Ports(ctx context.Context, req *connect.Request[bangerv1.PortsRequest]) (*connect.Response[bangerv1.PortsResponse], error) {
	ports, err := v.machines.Ports(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	info, err := v.machines.Get(ctx, req.Msg.GetVm())
	if err != nil {
		return nil, toError(err)
	}
	type end struct {
		protocol string
		port     uint16
	}
	hosts := map[end]string{}
	for _, p := range info.Status.Published {
		hosts[end{p.Protocol, p.GuestPort}] = p.Host.String()
	}
	res := &bangerv1.PortsResponse{}
	for _, p := range ports {
		res.Ports = append(res.Ports, &bangerv1.Port{
			Protocol: p.Protocol, Address: p.Address, Port: uint32(p.Port), Process: p.Process,
			HostAddress: hosts[end{p.Protocol, p.Port}],
		})
	}
	return connect.NewResponse(res), nil
}
