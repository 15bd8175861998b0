package sshserver

import (
	"context"
	"net"
	"strconv"

	"golang.org/x/crypto/ssh"
)

// forward names a remote forward as the client does.
type forward struct{ network, host, port string }

// global serves the requests that belong to no channel.
func (s *server) global(ctx context.Context, requests <-chan *ssh.Request) {
	for r := range requests {
		ok, answer := s.globalRequest(ctx, r)
		if r.WantReply {
			_ = r.Reply(ok, answer)
		}
	}
}

func (s *server) globalRequest(ctx context.Context, r *ssh.Request) (ok bool, answer []byte) {
	var at struct {
		Host string
		Port uint32
	}
	var path struct{ Path string }
	switch r.Type {
	case "tcpip-forward", "cancel-tcpip-forward":
		if ssh.Unmarshal(r.Payload, &at) != nil || at.Port > 65535 {
			return false, nil
		}
		f := forward{"tcp", at.Host, decimal(at.Port)}
		if r.Type == "cancel-tcpip-forward" {
			return s.unforward(f), nil
		}
		port, err := s.listenTCP(ctx, f)
		if err != nil {
			return false, nil
		}
		if at.Port == 0 {
			answer = ssh.Marshal(struct{ Port uint32 }{port})
		}
		return true, answer
	case "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com":
		if ssh.Unmarshal(r.Payload, &path) != nil || path.Path == "" {
			return false, nil
		}
		f := forward{"unix", path.Path, ""}
		if r.Type == "cancel-streamlocal-forward@openssh.com" {
			return s.unforward(f), nil
		}
		return s.listenUnix(ctx, f) == nil, nil
	default: // keepalives among them: any answer will do
		return false, nil
	}
}

// listenTCP begins a remote forward and returns the port that it got.
func (s *server) listenTCP(ctx context.Context, f forward) (uint32, error) {
	host := f.host
	switch host { // RFC 4254, 7.1
	case "localhost":
		host = "127.0.0.1"
	case "", "*":
		host = "0.0.0.0"
	}
	ctx, cancel := context.WithCancel(ctx)
	ln, err := s.guest.Listen(ctx, "tcp", net.JoinHostPort(host, f.port), s.conn.User())
	if err != nil {
		cancel()
		return 0, err
	}
	_, text, _ := net.SplitHostPort(ln.Addr().String())
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		cancel()
		_ = ln.Close()
		return 0, err
	}
	f.port = text // by which the client cancels it
	s.keep(f, cancel)
	type origin struct {
		Host     string
		Port     uint32
		FromHost string
		FromPort uint32
	}
	s.tasks.Go(func() {
		s.accept(ctx, ln, func(conn net.Conn) (string, []byte) {
			o := origin{Host: f.host, Port: uint32(port), FromHost: "127.0.0.1"} // a port
			if from, fromPort, err := net.SplitHostPort(conn.RemoteAddr().String()); err == nil {
				n, _ := strconv.ParseUint(fromPort, 10, 16)
				o.FromHost, o.FromPort = from, uint32(n) // a port
			}
			return "forwarded-tcpip", ssh.Marshal(o)
		})
	})
	return uint32(port), nil // a port
}

func (s *server) listenUnix(ctx context.Context, f forward) error {
	ctx, cancel := context.WithCancel(ctx)
	ln, err := s.guest.Listen(ctx, "unix", f.host, s.conn.User())
	if err != nil {
		cancel()
		return err
	}
	s.keep(f, cancel)
	s.tasks.Go(func() {
		s.accept(ctx, ln, func(net.Conn) (string, []byte) {
			return "forwarded-streamlocal@openssh.com", ssh.Marshal(struct{ Path, Reserved string }{Path: f.host})
		})
	})
	return nil
}

func (s *server) keep(f forward, cancel context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.forwards[f]; old != nil {
		old()
	}
	s.forwards[f] = cancel
}

func (s *server) unforward(f forward) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cancel := s.forwards[f]
	delete(s.forwards, f)
	if cancel != nil {
		cancel()
	}
	return cancel != nil
}

// accept carries the connections of a listener in the guest to the client, each over a channel of the kind that it is told,
// until the context ends. It closes the listener.
func (s *server) accept(ctx context.Context, ln net.Listener, kind func(net.Conn) (string, []byte)) {
	defer ln.Close() //nolint:errcheck // nothing is lost by it
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		s.tasks.Go(func() {
			half, ok := conn.(Conn)
			if !ok {
				_ = conn.Close()
				return
			}
			name, extra := kind(conn)
			channel, requests, err := s.conn.OpenChannel(name, extra)
			if err != nil {
				_ = conn.Close()
				return
			}
			s.tasks.Go(func() { ssh.DiscardRequests(requests) })
			// A connection that was made goes on when its forward is cancelled; it ends with the client.
			join(context.WithoutCancel(ctx), channel, half)
		})
	}
}
