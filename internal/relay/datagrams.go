package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// MaxFlows is how many senders of datagrams are served at a time; those of others are lost.
	MaxFlows = 256
	// flowIdle is how long a flow without datagrams lasts. RFC 4787 wants two minutes at least.
	flowIdle = 2 * time.Minute
	// flowQueue is how many datagrams wait while a flow is being connected, or its other side is slow.
	flowQueue = 64
	// maxDatagram is the most that UDP over IPv4 carries, in bytes.
	maxDatagram = 65507
)

// Datagrams carries the datagrams that come to a socket until the context ends, then closes it. Each sender gets a connection
// of its own, made by dial, which keeps datagrams apart; what comes back on it goes to that sender. Datagrams that can't be
// carried on are lost.
func Datagrams(ctx context.Context, pc net.PacketConn, dial Dial, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	d := &datagrams{pc: pc, dial: dial, log: log, flows: map[string]chan []byte{}}
	defer d.running.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = pc.Close() })()
	defer pc.Close() //nolint:errcheck // nothing to lose
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case err == nil:
			d.take(ctx, append([]byte(nil), buf[:n]...), from)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
	}
}

type datagrams struct {
	pc      net.PacketConn
	dial    Dial
	log     *slog.Logger
	running sync.WaitGroup

	mu    sync.Mutex
	flows map[string]chan []byte // by sender; a channel is never closed
}

// take hands a datagram to its sender's flow.
func (d *datagrams) take(ctx context.Context, b []byte, from net.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in, ok := d.flows[from.String()]
	if !ok {
		if len(d.flows) >= MaxFlows {
			return
		}
		in = make(chan []byte, flowQueue)
		d.flows[from.String()] = in
		d.running.Go(func() {
			defer d.forget(from)
			d.carry(ctx, in, from)
		})
	}
	select {
	case in <- b:
	default: // the other side is too slow
	}
}

func (d *datagrams) forget(from net.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.flows, from.String())
}

// carry is the life of one flow.
func (d *datagrams) carry(ctx context.Context, in <-chan []byte, from net.Addr) {
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := d.dial(dialing)
	cancel()
	if err != nil {
		d.log.Debug("carry datagrams on", "addr", d.pc.LocalAddr(), "err", err)
		return
	}
	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	idle := time.AfterFunc(flowIdle, cancel)
	defer idle.Stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer cancel()
		buf := make([]byte, maxDatagram)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			idle.Reset(flowIdle)
			_, _ = d.pc.WriteTo(buf[:n], from)
		}
	}()
	for ctx.Err() == nil {
		select {
		case b := <-in:
			idle.Reset(flowIdle)
			_, _ = conn.Write(b) // what is too long is lost, and what is broken is read to be so
		case <-ctx.Done():
		}
	}
	_ = conn.Close()
	<-back
}
