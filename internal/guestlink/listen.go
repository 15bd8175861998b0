package guestlink

import (
	"context"

	"banger/internal/guestproto"
)

// Listen listens inside the guest until the context ends or Close. What the guest says of addresses is its word.
func (c *Client) Listen(ctx context.Context, spec guestproto.ListenSpec) (*Listener, error) {
	k, err := c.call(ctx, guestproto.OpListen, spec)
	if err != nil {
		return nil, err
	}
	var l guestproto.Listening
	if err := k.answer(&l); err != nil {
		k.close()
		return nil, err
	}
	return &Listener{call: k, addr: clean(l.Addr)}, nil
}

// Listener is a listener in a guest. It is for one goroutine, but for Close.
type Listener struct {
	call *call
	addr string
}

// Addr is the address that it got.
func (l *Listener) Addr() string { return l.addr }

// Accept waits for the next connection. It is taken by dialling guestproto.NetworkAccepted with its number.
func (l *Listener) Accept() (guestproto.Accepted, error) {
	var a guestproto.Accepted
	err := l.call.answer(&a)
	a.From = clean(a.From)
	return a, err
}

// Close ends the listener, and the connections that nobody has taken.
func (l *Listener) Close() { l.call.close() }
