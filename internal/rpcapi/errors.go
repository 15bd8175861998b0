// Package rpcapi serves the API of the daemon: it translates between the protocol (proto/banger/v1) and the services,
// and decides nothing. It owns no state. Each call runs in the goroutine that the HTTP server gave it; a call that
// attaches to a command adds one for the client's input, which ends with the call.
package rpcapi

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// codes maps each kind of error to the status code of the protocol; docs/API.md shows it.
var codes = map[fault.Kind]connect.Code{ //nolint:gochecknoglobals // a constant table
	fault.Internal:     connect.CodeInternal,
	fault.Invalid:      connect.CodeInvalidArgument,
	fault.NotFound:     connect.CodeNotFound,
	fault.Exists:       connect.CodeAlreadyExists,
	fault.Precondition: connect.CodeFailedPrecondition,
	fault.Busy:         connect.CodeAborted,
	fault.Exhausted:    connect.CodeResourceExhausted,
	fault.Denied:       connect.CodePermissionDenied,
	fault.Unavailable:  connect.CodeUnavailable,
	fault.Timeout:      connect.CodeDeadlineExceeded,
	fault.Canceled:     connect.CodeCanceled,
	fault.Unsupported:  connect.CodeUnimplemented,
	fault.Corrupt:      connect.CodeDataLoss,
}

// Kinds of errors beyond those of package fault: how a command failed to start in a guest.
const (
	kindCommandNotFound      = "command-not-found"
	kindCommandNotExecutable = "command-not-executable"
)

// toError translates an error for the client.
func toError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*connect.Error](err); ok {
		return err
	}
	kind := fault.KindOf(err)
	return newError(codes[kind], kind.String(), err)
}

func newError(code connect.Code, kind string, err error) *connect.Error {
	return detailedError(code, &bangerv1.ErrorDetail{Kind: kind, Hint: fault.HintOf(err)}, err)
}

func detailedError(code connect.Code, about *bangerv1.ErrorDetail, err error) *connect.Error {
	ce := connect.NewError(code, errors.New(err.Error()))
	if detail, err := connect.NewErrorDetail(about); err == nil {
		ce.AddDetail(detail)
	}
	return ce
}

// recoverPanic makes a defect in one call an error of that call.
func recoverPanic(_ context.Context, spec connect.Spec, value any) error {
	return toError(fmt.Errorf("defect in %s: %v", spec.Procedure, value))
}
