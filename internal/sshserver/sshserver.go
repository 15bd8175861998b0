// Package sshserver speaks the server's side of SSH (RFC 4251 to 4254, and OpenSSH's PROTOCOL) on one connection, on behalf
// of a guest that has no SSH server: sessions are commands in the guest, forwards are connections made and taken there.
//
// It owns the protocol, the keys (see [Keys]) and what a command line means in an image without a shell. It owns no socket and no
// VM: a [Guest] is all that it knows of one. The client is the owner of the VM; the guest is trusted with nothing but the
// bytes that it was asked for.
//
// Goroutines: [Serve] runs in its caller; each channel, each remote forward and each connection taken for one adds its own. All have
// ended when Serve returns. Locks: server.mu guards the table of remote forwards and is never held over I/O.
package sshserver

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/crypto/ssh"

	"banger/internal/fault"
)

// Guest is what a server needs of a VM. Its methods are called concurrently.
type Guest interface {
	// Exec runs a command to its end. What it fails with is of kind NotFound or Denied if the command, or the shell that it
	// asks for, is not there or can't be run; a command that has started calls Streams.Started first.
	Exec(ctx context.Context, c Command, s Streams) (Exit, error)
	// Dial connects from inside the guest; the context bounds the connecting. Networks: tcp, unix.
	Dial(ctx context.Context, network, address string) (Conn, error)
	// Listen listens inside the guest, as a user of it, until the context ends. Networks: tcp, unix; an empty unix address is
	// a new one that only the user can reach. The RemoteAddr of a connection says who connected; each is a Conn.
	Listen(ctx context.Context, network, address, user string) (net.Listener, error)
}

// Conn is a connection of which one direction can be ended.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Command is a command to run in the guest. Args may begin with one of the names in package guestproto.
type Command struct {
	Args []string // empty: the user's login shell
	Env  []string // NAME=value
	Dir  string   // empty: where commands start in this VM; "~": the user's home
	User string
	TTY  bool
	Size Size
	Term string
}

// Size is that of a terminal, in characters.
type Size struct{ Rows, Cols uint32 }

// Streams is what a command is connected to.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Signals        <-chan syscall.Signal
	Sizes          <-chan Size // with a terminal
	Started        func()
}

// Exit is how a command ended.
type Exit struct {
	Code   int // 0-255
	Signal int // number of the signal that ended it, or 0
}

// server is one connection.
type server struct {
	guest Guest
	conn  *ssh.ServerConn
	tasks sync.WaitGroup

	mu       sync.Mutex
	forwards map[forward]context.CancelFunc
}

// Serve serves one connection until it ends, however it does, or until the context ends. It closes the connection. The client
// proves that it has the user's key; nothing else lets it in. The error is that of the handshake.
func Serve(ctx context.Context, conn net.Conn, keys *Keys, guest Guest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-banger",
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if subtle.ConstantTimeCompare(key.Marshal(), keys.User.Marshal()) == 1 {
				return nil, nil //nolint:nilnil // nothing that is restricted
			}
			return nil, fault.New(fault.Denied, "not the key that banger made for this user")
		},
	}
	config.AddHostKey(keys.Host)
	sc, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fault.New(fault.Unavailable, "SSH handshake: %w", err)
	}
	s := &server{guest: guest, conn: sc, forwards: make(map[forward]context.CancelFunc)}
	s.tasks.Go(func() { s.global(ctx, requests) })
	for ch := range channels {
		s.tasks.Go(func() { s.channel(ctx, ch) })
	}
	cancel() // the client has gone: so does all that runs for it
	_ = sc.Close()
	s.tasks.Wait()
	return nil
}

// channel serves one channel that the client wants to open.
func (s *server) channel(ctx context.Context, ch ssh.NewChannel) {
	switch ch.ChannelType() {
	case "session":
		s.session(ctx, ch)
	case "direct-tcpip":
		var to struct {
			Host     string
			Port     uint32
			FromHost string
			FromPort uint32
		}
		if ssh.Unmarshal(ch.ExtraData(), &to) != nil {
			refuse(ch, ssh.ConnectionFailed, "malformed request")
			return
		}
		s.direct(ctx, ch, "tcp", net.JoinHostPort(to.Host, decimal(to.Port)))
	case "direct-streamlocal@openssh.com":
		var to struct {
			Path     string
			Reserved string
			Port     uint32
		}
		if ssh.Unmarshal(ch.ExtraData(), &to) != nil {
			refuse(ch, ssh.ConnectionFailed, "malformed request")
			return
		}
		s.direct(ctx, ch, "unix", to.Path)
	default:
		refuse(ch, ssh.UnknownChannelType, "unknown channel type")
	}
}

func refuse(ch ssh.NewChannel, why ssh.RejectionReason, message string) { _ = ch.Reject(why, message) }

// direct connects a channel to an address in the guest.
func (s *server) direct(ctx context.Context, ch ssh.NewChannel, network, address string) {
	conn, err := s.guest.Dial(ctx, network, address)
	if err != nil {
		refuse(ch, ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := ch.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	s.tasks.Go(func() { ssh.DiscardRequests(requests) })
	join(ctx, channel, conn)
}

// join copies both ways, each to its end, and tells the other side of it by a half-close. A way that breaks ends both. It
// closes both.
func join(ctx context.Context, channel ssh.Channel, conn Conn) {
	end := func() { _ = channel.Close(); _ = conn.Close() }
	defer end()
	defer context.AfterFunc(ctx, end)()
	var in sync.WaitGroup
	in.Go(func() {
		if _, err := io.Copy(conn, channel); err != nil || conn.CloseWrite() != nil {
			end()
		}
	})
	if _, err := io.Copy(channel, conn); err != nil || channel.CloseWrite() != nil {
		end()
	}
	in.Wait()
}

// exitStatus is what a shell or sshd would say of a command that could not be run.
func exitStatus(err error, started bool) int {
	switch {
	case started:
	case fault.Is(err, fault.NotFound):
		return 127
	case fault.Is(err, fault.Denied):
		return 126
	}
	return 255
}

// errGone is the error of what ends because the client has gone.
var errGone = errors.New("the SSH client has gone")
