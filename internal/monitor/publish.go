package monitor

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/relay"
)

// ports are the published ports of the VM.
type ports struct {
	sockets []monitorlink.Socket
	link    guestlink.Opener
	log     *slog.Logger
}

// openPorts opens the sockets. They take connections from now on, which wait until they are carried.
func openPorts(wanted []microvm.Publish, l *link, b *board, log *slog.Logger) (*ports, error) {
	sockets, err := monitorlink.Listen(wanted)
	if err != nil {
		return nil, err
	}
	published := make([]monitorlink.Published, len(sockets))
	for i, s := range sockets {
		published[i] = s.Published
	}
	b.update(func(s *monitorlink.Status) { s.Published = published })
	return &ports{sockets: sockets, link: l, log: log}, nil
}

func (p *ports) close() { monitorlink.CloseAll(p.sockets) }

// carry carries what comes to the ports to the guest until the context ends. It closes the sockets.
func (p *ports) carry(ctx context.Context, n *network) {
	var wg sync.WaitGroup
	for _, s := range p.sockets {
		wg.Go(func() {
			var err error
			if s.Stream != nil {
				err = relay.Streams(ctx, s.Stream, func(ctx context.Context) (net.Conn, error) {
					return p.dial(ctx, n, s.GuestPort)
				}, p.log)
			} else {
				err = relay.Datagrams(ctx, s.Packets, func(ctx context.Context) (net.Conn, error) {
					return guestlink.NewClient(p.link).Dial(ctx, microvm.ProtocolUDP, guestLoopback(s.GuestPort))
				}, p.log)
			}
			if err != nil {
				p.log.Error("published port", "addr", s.Host, "err", err)
			}
		})
	}
	wg.Wait()
}

func guestLoopback(port uint16) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

// networkPatience is how long the guest's network may take to answer before the link is tried.
const networkPatience = 5 * time.Second

// dial connects to a TCP port of the guest: through its network, which is the quicker way, or else, if nobody listens
// there or it has none, as the guest's own processes would, to its loopback address.
func (p *ports) dial(ctx context.Context, n *network, port uint16) (net.Conn, error) {
	var first error
	if n != nil {
		quick, cancel := context.WithTimeout(ctx, networkPatience)
		conn, err := n.net.Dial(quick, port)
		cancel()
		if err == nil {
			return conn, nil
		}
		if first = err; !errors.Is(err, syscall.ECONNREFUSED) {
			p.log.Debug("reach the guest through its network", "port", port, "err", err)
		}
	}
	conn, err := guestlink.NewClient(p.link).Dial(ctx, microvm.ProtocolTCP, guestLoopback(port))
	if err != nil {
		return nil, errors.Join(first, err)
	}
	return conn, nil
}
