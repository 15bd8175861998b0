package rpcapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
	"banger/internal/machines"
)

// guests serves the calls of the VM service that lead into guests.
type guests struct {
	bangerv1connect.UnimplementedVMServiceHandler // for what this version does not have

	machines *machines.Service
}

// HTTP2 returns the settings that a server of the API needs: a client's calls share a connection, and one whose guest takes
// nothing must not use up what that may hold. Memory is taken by what has come only.
func HTTP2() *http.HTTP2Config {
	const perStream, streams = 256 << 10, 250 // the latter is net/http's default of MaxConcurrentStreams
	return &http.HTTP2Config{
		MaxConcurrentStreams: streams, MaxReceiveBufferPerStream: perStream, MaxReceiveBufferPerConnection: perStream * streams,
	}
}

// Dial implements the call of the same name. It ends when both directions have, when the connection in the guest breaks, or
// with its client.
func (g guests) Dial(ctx context.Context, stream *connect.BidiStream[bangerv1.DialRequest, bangerv1.DialResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return toError(fault.New(fault.Invalid, "the stream holds no request: %w", err))
	}
	start := first.GetStart()
	if start == nil {
		return toError(fault.New(fault.Invalid, "the first message is not the start message"))
	}
	vm, guest, err := g.machines.Guest(ctx, start.GetVm())
	if err != nil {
		return toError(err)
	}
	conn, err := guest.Dial(ctx, start.GetNetwork(), start.GetAddress())
	if err != nil {
		return toError(fault.New(fault.KindOf(err), "connect to %s in VM %s: %w", start.GetAddress(), vm.Name, err))
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := stream.Send(&bangerv1.DialResponse{Kind: &bangerv1.DialResponse_Connected{Connected: true}}); err != nil {
		return toError(err)
	}
	sent := make(chan struct{}) // the client has ended its direction
	go func() {
		if sendToGuest(stream, conn) == nil {
			close(sent)
			return
		}
		_ = conn.Close() // which is what ends the other direction
	}()
	if err := receiveFromGuest(stream, conn); err != nil {
		return toError(err)
	}
	select {
	case <-sent:
	case <-ctx.Done():
	}
	return nil
}

// sendToGuest passes the client's bytes on until it says that there are no more. Its stream has gone away if it fails, or
// the guest's peer has.
func sendToGuest(stream *connect.BidiStream[bangerv1.DialRequest, bangerv1.DialResponse], conn net.Conn) error {
	for {
		req, err := stream.Receive()
		if err != nil {
			return err
		}
		switch kind := req.GetKind().(type) {
		case *bangerv1.DialRequest_Data:
			if _, err := conn.Write(kind.Data); err != nil && !fault.Is(err, fault.Invalid) { // else a datagram too long, and lost
				return err
			}
		case *bangerv1.DialRequest_CloseWrite:
			return conn.(interface{ CloseWrite() error }).CloseWrite()
		}
	}
}

// receiveFromGuest passes the guest's bytes on until there are no more, and says so.
func receiveFromGuest(stream *connect.BidiStream[bangerv1.DialRequest, bangerv1.DialResponse], conn io.Reader) error {
	buf := make([]byte, maxData)
	for {
		n, err := conn.Read(buf)
		if err == nil || n > 0 { // a datagram may be empty
			data := &bangerv1.DialResponse{Kind: &bangerv1.DialResponse_Data{Data: buf[:n]}}
			if err := stream.Send(data); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return stream.Send(&bangerv1.DialResponse{Kind: &bangerv1.DialResponse_End{End: true}})
		case err != nil:
			return fault.New(fault.Unavailable, "the connection in the guest broke: %w", err)
		}
	}
}

// maxData is how many bytes of a guest go into one message.
const maxData = 64 << 10
