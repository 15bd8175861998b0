package rpcapi

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/images"
	"banger/internal/machines"
	"banger/internal/operations"
)

// PromoteImage implements the call of the same name. The VM is held while its disks are read.
func (s imageServer) PromoteImage(
	ctx context.Context, req *connect.Request[bangerv1.PromoteImageRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	info, err := s.machines.Get(ctx, req.Msg.GetVm())
	if err != nil {
		return toError(err)
	}
	name := req.Msg.GetName()
	if name == "" {
		name = info.Name
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "promote", VM: info.ID, Name: info.Name},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			var im images.Image
			err := s.machines.WithDisks(ctx, string(info.ID), "promote", func(ctx context.Context, d machines.Disks) (err error) {
				p := images.Promotion{VM: d.VM.Name, Digest: d.VM.ImageDigest, System: d.System, Work: d.Work}
				if req.Msg.GetNoHome() {
					p.Work = ""
				}
				im, err = s.images.Promote(ctx, name, p, op.Report)
				return err
			})
			return imageEvent(im), err
		})
}

// errClientGone ends work that nobody else needs.
func errClientGone() error { return fault.New(fault.Canceled, "its client has gone away") }
