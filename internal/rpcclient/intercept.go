package rpcclient

import (
	"context"

	"connectrpc.com/connect"
)

// faults is the interceptor that applies toFault to every call.
type faults struct{}

// WrapUnary implements [connect.Interceptor].
func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, toFault(err)
	}
}

// WrapStreamingClient implements [connect.Interceptor].
func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		if spec.StreamType&connect.StreamTypeClient != 0 {
			// net/http's HTTP/2 does not notice that a context has ended while it waits for more of a request's body, so
			// that a stream in both directions would outlive its context. The end of the body makes it look.
			context.AfterFunc(ctx, func() { _ = conn.CloseRequest() })
		}
		return faultConn{conn}
	}
}

// WrapStreamingHandler implements [connect.Interceptor]; a client has no handlers.
func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type faultConn struct{ connect.StreamingClientConn }

func (c faultConn) Send(msg any) error    { return toFault(c.StreamingClientConn.Send(msg)) }
func (c faultConn) Receive(msg any) error { return toFault(c.StreamingClientConn.Receive(msg)) }
