package guestlink

import (
	"context"
	"errors"
	"net/netip"
	"path"
	"unicode"

	"banger/internal/guestproto"
)

// maxSocketPath is how long the path of a unix socket can be, in bytes: sun_path of unix(7) without the final zero.
const maxSocketPath = 107

// Listen listens inside the guest until the context ends or Close. The addresses that the guest tells are well-formed; whether they
// are true is its word.
func (c *Client) Listen(ctx context.Context, spec guestproto.ListenSpec) (*Listener, error) {
	k, err := c.call(ctx, guestproto.OpListen, spec)
	if err != nil {
		return nil, err
	}
	l := &Listener{call: k, unix: spec.Network == "unix"}
	var told guestproto.Listening
	err = k.answer(&told)
	if err == nil && !l.plausible(told.Addr, spec.Addr) {
		err = k.corrupt(errors.New("bad address of a listener"))
	}
	if err != nil {
		k.close()
		return nil, err
	}
	l.addr = told.Addr
	return l, nil
}

// Listener is a listener in a guest. It is for one goroutine, but for Close.
type Listener struct {
	call *call
	unix bool
	addr string
}

// plausible reports whether a listener that was asked to be at one address may say that it is at another.
func (l *Listener) plausible(told, asked string) bool {
	if !l.unix {
		at, err := netip.ParseAddrPort(told)
		return err == nil && at.Port() != 0
	}
	if asked != "" {
		return told == asked
	}
	for _, r := range told {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return false
		}
	}
	return path.IsAbs(told) && path.Clean(told) == told && len(told) <= maxSocketPath
}

// Addr is the address that it got: address and port, or the path of the socket.
func (l *Listener) Addr() string { return l.addr }

// Accept waits for the next connection. It is taken by dialling guestproto.NetworkAccepted with its number. From is the
// peer's address and port; a unix socket's peer has none.
func (l *Listener) Accept() (guestproto.Accepted, error) {
	var a guestproto.Accepted
	if err := l.call.answer(&a); err != nil {
		return guestproto.Accepted{}, err
	}
	if l.unix {
		a.From = ""
	} else if _, err := netip.ParseAddrPort(a.From); err != nil {
		return guestproto.Accepted{}, l.call.corrupt(errors.New("bad address of a peer"))
	}
	return a, nil
}

// Close ends the listener, and the connections that nobody has taken.
func (l *Listener) Close() { l.call.close() }
