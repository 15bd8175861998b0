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

// PromoteImage implements the call of the same name. A VM is held while its disks are read. One that is called like a
// registered image is refused: which of the two is meant cannot be told.
func (s imageServer) PromoteImage(
	ctx context.Context, req *connect.Request[bangerv1.PromoteImageRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	info, err := s.machines.Get(ctx, req.Msg.GetVm())
	if err != nil && !fault.Is(err, fault.NotFound) {
		return toError(err)
	}
	if im, ierr := s.images.Get(req.Msg.GetVm()); ierr == nil && (im.Registered || err != nil) {
		if err == nil {
			return toError(fault.New(fault.Invalid, "both a VM and a registered image are called %s", info.Name).
				WithHint("name the VM by its id, %s, or the image by its digest, %s", info.ID, im.Digest))
		}
		return s.promoteRegistered(ctx, im, req.Msg, stream)
	}
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

// promoteRegistered copies a registered image into the store.
func (s imageServer) promoteRegistered(
	ctx context.Context, im images.Image, req *bangerv1.PromoteImageRequest, stream *connect.ServerStream[bangerv1.Event],
) error {
	if req.GetName() != "" || req.GetNoHome() {
		return toError(fault.New(fault.Invalid, "%s is a registered image: it keeps its name, and has no home of a VM's", req.GetVm()).
			WithHint("leave --name and --no-home out"))
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "promote", Name: req.GetVm()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			im, err := s.images.Adopt(ctx, im, op.Report)
			return imageEvent(im), err
		})
}

// errClientGone ends work that nobody else needs.
func errClientGone() error { return fault.New(fault.Canceled, "its client has gone away") }
