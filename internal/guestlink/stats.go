package guestlink

import (
	"context"

	"banger/internal/guestproto"
)

// Stats asks for the use of the guest: CPU, memory, disks. The figures are the guest's word; they are within bounds, and
// no more is known of them.
func (c *Client) Stats(ctx context.Context) (guestproto.Stats, error) {
	k, err := c.call(ctx, guestproto.OpStats, nil)
	if err != nil {
		return guestproto.Stats{}, err
	}
	defer k.close()
	var s guestproto.Stats
	if err := k.answer(&s); err != nil {
		return guestproto.Stats{}, err
	}
	if err := s.Check(); err != nil {
		return guestproto.Stats{}, k.corrupt(err)
	}
	for i := range s.Disks {
		s.Disks[i].Serial = clean(s.Disks[i].Serial)
	}
	return s, nil
}

// Ports asks what the guest listens on.
func (c *Client) Ports(ctx context.Context) ([]guestproto.Port, error) {
	w, err := c.ports(ctx, guestproto.PortsSpec{})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	return w.Next()
}

// WatchPorts begins to watch what the guest listens on. The guest looks once a second for as long as it is watched; nobody
// polls over the link. The end of the context ends the watch.
func (c *Client) WatchPorts(ctx context.Context) (*PortsWatch, error) {
	return c.ports(ctx, guestproto.PortsSpec{Watch: true})
}

func (c *Client) ports(ctx context.Context, spec guestproto.PortsSpec) (*PortsWatch, error) {
	k, err := c.call(ctx, guestproto.OpPorts, spec)
	if err != nil {
		return nil, err
	}
	return &PortsWatch{call: k}, nil
}

// PortsWatch is a watch on a guest's ports. It is for one goroutine, but for Close.
type PortsWatch struct{ call *call }

// Next waits for the next list: the first comes at once, the others after a change. Each is the whole of it.
func (w *PortsWatch) Next() ([]guestproto.Port, error) {
	var p guestproto.Ports
	if err := w.call.answer(&p); err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, w.call.corrupt(err)
	}
	for i := range p.Ports {
		p.Ports[i].Process = clean(p.Ports[i].Process)
	}
	return p.Ports, nil
}

// Close ends the watch; a Next under way returns an error.
func (w *PortsWatch) Close() { w.call.close() }

// answer receives a frame of JSON.
func (k *call) answer(v any) error {
	f, err := k.expect(guestproto.FrameAnswer)
	if err != nil {
		return err
	}
	if err := f.Decode(v); err != nil {
		return k.corrupt(err)
	}
	return nil
}
