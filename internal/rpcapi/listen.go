package rpcapi

import (
	"context"
	"strconv"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/guestproto"
)

// Listen implements the call of the same name. It ends with its client or with the guest.
func (g guests) Listen(
	ctx context.Context, req *connect.Request[bangerv1.ListenRequest], stream *connect.ServerStream[bangerv1.ListenResponse],
) error {
	r := req.Msg
	vm, guest, err := g.machines.Guest(ctx, r.GetVm())
	if err != nil {
		return toError(err)
	}
	ln, err := guest.Listen(ctx, guestproto.ListenSpec{Network: r.GetNetwork(), Addr: r.GetAddress(), User: r.GetUser()})
	if err != nil {
		return toError(fault.New(fault.KindOf(err), "listen on %s in VM %s: %w", r.GetAddress(), vm.Name, err))
	}
	defer ln.Close()
	err = stream.Send(&bangerv1.ListenResponse{Kind: &bangerv1.ListenResponse_Listening{Listening: ln.Addr()}})
	for err == nil {
		var a guestproto.Accepted
		if a, err = ln.Accept(); err == nil {
			err = stream.Send(&bangerv1.ListenResponse{Kind: &bangerv1.ListenResponse_Accepted{
				Accepted: &bangerv1.AcceptedConnection{Number: strconv.FormatUint(a.Number, 10), From: a.From},
			}})
		}
	}
	return toError(err)
}
