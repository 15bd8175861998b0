package rpcapi

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/journal"
)

// eventServer serves the event service.
type eventServer struct{ journal *journal.Journal }

func (s eventServer) Events(
	ctx context.Context, req *connect.Request[bangerv1.EventsRequest], stream *connect.ServerStream[bangerv1.JournalEvent],
) error {
	q := journal.Query{After: req.Msg.GetAfter(), VM: req.Msg.GetVm(), Follow: req.Msg.GetFollow()}
	if q.After < 0 {
		return toError(fault.New(fault.Invalid, "bad sequence number %d", q.After))
	}
	return toError(s.journal.Each(ctx, q, func(e journal.Event) error {
		return stream.Send(&bangerv1.JournalEvent{
			Sequence: e.Sequence, At: toTime(e.At), Kind: string(e.Kind), VmId: string(e.VM), VmName: e.Name,
			Detail: e.Detail, OperationId: e.Operation,
		})
	}))
}
