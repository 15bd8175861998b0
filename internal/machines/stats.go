package machines

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// StatsRequest says whose samples are wanted.
type StatsRequest struct {
	VMs     []string // references; none: all that run
	History bool     // begin with the last hour of each
	Follow  bool     // go on with each new sample; with no VM named, those that start later are followed too
}

// VMSample is a sample of a VM.
type VMSample struct {
	ID   microvm.ID
	Name string
	monitorlink.Sample
}

// Times of asking for samples and ports.
const (
	samplesTimeout = 10 * time.Second // for a monitor to answer; it may wait for the guest a while
	portsTimeout   = 10 * time.Second // for the guest to look
	lookEvery      = time.Second      // for VMs that have started
)

// Stats hands out samples of VMs, in no particular order between VMs, oldest first for each. send is called by one
// goroutine at a time. It returns when there are no more: for a VM that is followed, when it ends. A VM that is named and
// does not run is fault.Precondition, and then nothing is sent.
func (s *Service) Stats(ctx context.Context, req StatsRequest, send func(VMSample) error) error {
	var sending sync.Mutex
	g, group := errgroup.WithContext(ctx)
	stream := func(vm microvm.VM, a *attachment) {
		g.Go(func() error {
			var sendErr error
			err := a.samples(group, req, func(sample monitorlink.Sample) error {
				sending.Lock()
				defer sending.Unlock()
				sendErr = send(VMSample{ID: vm.ID, Name: vm.Name, Sample: sample})
				return sendErr
			})
			if err == nil || sendErr != nil || len(req.VMs) > 0 || group.Err() != nil {
				return err
			}
			s.log.Warn("samples of VM", "vm", vm.ID, "err", err) // nobody asked for this one by name
			return nil
		})
	}
	if len(req.VMs) > 0 {
		attached, err := s.attachedVMs(ctx, req.VMs)
		if err != nil {
			return err
		}
		for a, vm := range attached {
			stream(vm, a)
		}
		return g.Wait()
	}
	err := s.eachAttached(group, req.Follow, stream)
	return errors.Join(g.Wait(), context.Cause(ctx), err)
}

// attachedVMs resolves references to VMs that have a living monitor.
func (s *Service) attachedVMs(ctx context.Context, refs []string) (map[*attachment]microvm.VM, error) {
	found := make(map[*attachment]microvm.VM, len(refs))
	for _, ref := range refs {
		vm, err := s.resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		a := s.table.attachment(vm.ID)
		if a == nil {
			return nil, notRunning(vm)
		}
		found[a] = vm
	}
	return found, nil
}

// eachAttached calls visit for each VM that has a living monitor; with follow it goes on, with those that get one, until the
// context ends.
func (s *Service) eachAttached(ctx context.Context, follow bool, visit func(microvm.VM, *attachment)) error {
	visited := map[*attachment]bool{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		present := map[*attachment]bool{}
		for _, a := range s.table.attachments() {
			present[a] = true
			if visited[a] {
				continue
			}
			vm, err := s.store.Get(ctx, a.id)
			switch {
			case err == nil:
				visit(vm, a)
			case ctx.Err() == nil && !fault.Is(err, fault.NotFound): // else it has just been deleted
				return err
			}
		}
		visited = present // what has ended is forgotten
		if !follow {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// samples hands out what the VM's monitor has. That the VM ends is no error.
func (a *attachment) samples(ctx context.Context, req StatsRequest, send func(monitorlink.Sample) error) error {
	begin, cancel := context.WithTimeout(ctx, samplesTimeout)
	defer cancel()
	in, err := a.client.Samples(begin, monitorlink.SamplesSpec{History: req.History, Follow: req.Follow})
	if err != nil {
		return a.unlessEnded(err)
	}
	defer in.Close() //nolint:errcheck // nothing to flush
	bound := ctx
	if !req.Follow {
		bound = begin
	}
	defer context.AfterFunc(bound, func() { _ = in.Close() })()
	for {
		sample, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case bound.Err() != nil:
			return context.Cause(bound)
		case err != nil:
			return a.unlessEnded(err)
		}
		if err := send(sample); err != nil {
			return err
		}
	}
}

// endGrace is how long after a monitor's silence its end may be seen.
const endGrace = 500 * time.Millisecond

// unlessEnded returns the error, unless the monitor is about to end, which explains it.
func (a *attachment) unlessEnded(err error) error {
	select {
	case <-a.done:
		return nil
	case <-time.After(endGrace):
		return err
	}
}

// Ports returns what the guest of a running VM listens on, in the order of guestproto.ComparePorts.
func (s *Service) Ports(ctx context.Context, ref string) ([]guestproto.Port, error) {
	vm, a, err := s.running(ctx, ref)
	if err != nil {
		return nil, err
	}
	call, cancel := context.WithTimeout(ctx, portsTimeout)
	defer cancel()
	ports, err := guestlink.NewClient(a.client).Ports(call)
	switch {
	case err == nil:
		return ports, nil
	case ctx.Err() == nil && call.Err() != nil:
		return nil, fault.New(fault.Timeout, "the guest of VM %s does not say what it listens on", vm.Name).
			WithHint("look at its console: banger logs %s", vm.Name)
	default:
		return nil, fault.New(fault.KindOf(err), "ports of VM %s: %w", vm.Name, err)
	}
}
