package rpcclient

import (
	"errors"
	"io"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// Remote is an error as the daemon told it.
type Remote struct {
	Message     string
	Kind        string // as sent; finer than fault.Kind for errors of commands in guests
	VM          string // id of the VM concerned, if there is one
	OperationID string
}

// Error returns the daemon's words.
func (r *Remote) Error() string { return r.Message }

// Kinds of errors that only the start of a command in a guest has.
const (
	KindCommandNotFound      = "command-not-found"
	KindCommandNotExecutable = "command-not-executable"
)

// toFault turns an error of a call into one of package fault. An end of stream stays what it is.
func toFault(err error) error {
	var e *connect.Error
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case !errors.As(err, &e):
		return fault.New(fault.KindOf(err), "%w", err)
	case !connect.IsWireError(err):
		return transportFault(e)
	}
	remote := &Remote{Message: e.Message()}
	kind := kindOfCode(e.Code())
	hint := ""
	if d := detailOf(e); d != nil {
		remote.Kind, remote.VM, remote.OperationID = d.GetKind(), d.GetVmId(), d.GetOperationId()
		hint = d.GetHint()
		kind = kindOfName(d.GetKind())
	} else if e.Code() == connect.CodeUnimplemented {
		hint = "the daemon may be of another version: end it (VMs go on running) and try again: banger daemon stop"
	}
	return &fault.Error{Kind: kind, Hint: hint, Err: remote}
}

// transportFault is for errors that arose on this side: the caller gave up, or the connection broke.
func transportFault(e *connect.Error) error {
	switch e.Code() {
	case connect.CodeCanceled:
		return &fault.Error{Kind: fault.Canceled, Err: e}
	case connect.CodeDeadlineExceeded:
		return &fault.Error{Kind: fault.Timeout, Err: e}
	default:
		return fault.New(fault.Unavailable, "the connection to the daemon broke: %w", e.Unwrap()).
			WithHint("VMs go on running; look at the daemon's log (banger daemon logs) and try again")
	}
}

func detailOf(e *connect.Error) *bangerv1.ErrorDetail {
	for _, d := range e.Details() {
		msg, err := d.Value()
		if err != nil {
			continue // of a type that this version does not know
		}
		if detail, ok := msg.(*bangerv1.ErrorDetail); ok {
			return detail
		}
	}
	return nil
}

func kindOfName(name string) fault.Kind {
	switch name {
	case KindCommandNotFound:
		return fault.NotFound
	case KindCommandNotExecutable:
		return fault.Denied
	default:
		return fault.ParseKind(name)
	}
}

func kindOfCode(c connect.Code) fault.Kind {
	switch c {
	case connect.CodeCanceled:
		return fault.Canceled
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return fault.Invalid
	case connect.CodeDeadlineExceeded:
		return fault.Timeout
	case connect.CodeNotFound:
		return fault.NotFound
	case connect.CodeAlreadyExists:
		return fault.Exists
	case connect.CodePermissionDenied, connect.CodeUnauthenticated:
		return fault.Denied
	case connect.CodeResourceExhausted:
		return fault.Exhausted
	case connect.CodeFailedPrecondition:
		return fault.Precondition
	case connect.CodeAborted:
		return fault.Busy
	case connect.CodeUnimplemented:
		return fault.Unsupported
	case connect.CodeUnavailable:
		return fault.Unavailable
	case connect.CodeDataLoss:
		return fault.Corrupt
	default:
		return fault.Internal
	}
}
