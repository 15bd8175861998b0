package guestagent

import (
	"context"
	"errors"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// dial connects to something in the guest and copies both ways.
func (a *Agent) dial(ctx context.Context, s *stream, spec guestproto.DialSpec) error {
	var conn net.Conn
	var err error
	switch spec.Network {
	case "tcp", "tcp4", "tcp6", "udp", "unix":
		var d net.Dialer
		// The host may give up meanwhile; its first frame must not be lost to finding out, so the kernel's timeout decides.
		conn, err = d.DialContext(ctx, spec.Network, spec.Addr)
	case guestproto.NetworkAccepted:
		if conn, err = a.takeAccepted(spec.Addr); err != nil {
			return err
		}
	default:
		return fault.New(fault.Invalid, "can't connect by %q: use tcp, tcp4, tcp6, udp or unix", spec.Network)
	}
	if err != nil {
		return fault.New(dialKind(err), "connect in the guest: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	if err := s.done(nil); err != nil {
		return nil //nolint:nilerr // nobody is left to tell
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if spec.Network == "udp" {
		relayDatagrams(s, conn)
		return nil
	}
	relayStream(s, conn)
	return nil
}

// dialKind classifies a failure to connect: an address that makes no sense is the asker's mistake.
func dialKind(err error) fault.Kind {
	var bad *net.AddrError
	var unknown *net.DNSError
	switch {
	case errors.As(err, &bad), errors.Is(err, unix.EINVAL), errors.As(err, &unknown) && unknown.IsNotFound:
		return fault.Invalid
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fault.Denied
	case errors.Is(err, unix.ENOENT):
		return fault.NotFound
	default:
		return fault.Unavailable
	}
}

// relayStream ends when both directions have. A direction that breaks ends both, without FrameEOF.
func relayStream(s *stream, conn net.Conn) {
	received := make(chan struct{})
	go func() {
		defer close(received)
		_, err := io.Copy(conn, &dataReader{r: s.r})
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
		} else {
			_ = conn.Close()
		}
	}()
	if _, err := io.Copy(dataWriter{s.w}, onlyReader{conn}); err == nil && s.w.Frame(guestproto.FrameEOF, nil) == nil {
		<-received
	}
}

// onlyReader hides the methods that make io.Copy bypass its buffer.
type onlyReader struct{ io.Reader }

// relayDatagrams passes each datagram on as one frame, and each frame as one datagram, until the host ends its direction:
// nobody else can say that there will be no more. What can't be sent is lost, as datagrams are.
func relayDatagrams(s *stream, conn net.Conn) {
	go func() {
		buf := make([]byte, guestproto.MaxData+1)
		for {
			n, err := conn.Read(buf)
			switch {
			case errors.Is(err, unix.ECONNREFUSED):
				continue // nobody listens there yet, or any more
			case err != nil:
				return
			case n > guestproto.MaxData:
				continue
			}
			if s.w.Frame(guestproto.FrameData, buf[:n]) != nil {
				return
			}
		}
	}()
	for {
		f, err := s.r.Next(guestproto.MaxPayload)
		if err != nil || f.Type != guestproto.FrameData {
			return
		}
		_, _ = conn.Write(f.Payload)
	}
}
