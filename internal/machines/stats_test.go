//go:build fakevmm

package machines_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestproto"
	"banger/internal/machines"
)

// stats asks once and returns the samples by the name of their VM.
func (b *bed) stats(req machines.StatsRequest) (map[string][]machines.VMSample, error) {
	found := map[string][]machines.VMSample{}
	err := b.svc.Stats(b.Context(), req, func(s machines.VMSample) error {
		found[s.Name] = append(found[s.Name], s)
		return nil
	})
	return found, err
}

func TestStats(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("still")
	if got, err := b.stats(machines.StatsRequest{}); err != nil || len(got) != 0 {
		t.Errorf("nothing runs: %v, %v", got, err)
	}
	if _, err := b.stats(machines.StatsRequest{VMs: []string{"still"}}); !fault.Is(err, fault.Precondition) || fault.HintOf(err) == "" {
		t.Errorf("of a VM that does not run: %v", err)
	}
	if _, err := b.stats(machines.StatsRequest{VMs: []string{"nosuch"}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of no VM: %v", err)
	}
	vm := b.create("a")
	b.create("b")
	b.start("a")
	b.start("b")
	got, err := b.stats(machines.StatsRequest{})
	if err != nil || len(got) != 2 || len(got["a"]) != 1 || len(got["b"]) != 1 {
		t.Fatalf("all that run: %v, %v", got, err)
	}
	s := got["a"][0]
	if s.ID != vm.ID || !s.HasGuest || s.GuestTotal == 0 || s.Processes == 0 || s.VMMResident == 0 || time.Since(s.Time()) > time.Minute {
		t.Errorf("sample: %+v", s)
	}
	// The second of two VMs is wrong: nothing is sent.
	if got, err := b.stats(machines.StatsRequest{VMs: []string{"a", "still"}}); err == nil || len(got) != 0 {
		t.Errorf("one that runs and one that does not: %v, %v", got, err)
	}
	refused := errors.New("refused")
	if err := b.svc.Stats(t.Context(), machines.StatsRequest{}, func(machines.VMSample) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("a client that is gone: %v", err)
	}
}

// TestStatsFollow: whoever follows all VMs sees one that starts later; whoever follows one, its end.
func TestStatsFollow(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	b.create("b")
	b.start("a")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	seen := make(chan string, 1000)
	all.Go(func() {
		err := b.svc.Stats(ctx, machines.StatsRequest{Follow: true}, func(s machines.VMSample) error {
			seen <- s.Name
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("all: %v", err)
		}
	})
	wait := func(name string) {
		for {
			select {
			case got := <-seen:
				if got == name {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no sample of %s", name)
			}
		}
	}
	wait("a")
	b.start("b")
	wait("b")
	n := 0
	ended := make(chan error, 1)
	go func() {
		ended <- b.svc.Stats(ctx, machines.StatsRequest{VMs: []string{"b"}, Follow: true, History: true}, func(machines.VMSample) error {
			if n++; n == 3 {
				all.Go(func() {
					if _, err := b.svc.Stop(t.Context(), "b", 0, nil); err != nil {
						t.Error(err)
					}
				})
			}
			return nil
		})
	}()
	select {
	case err := <-ended:
		if err != nil || n < 3 {
			t.Errorf("one that ends: %d samples, %v", n, err)
		}
	case <-ctx.Done():
		t.Error("following goes on after the VM's end")
	}
	wait("a")
	cancel()
	all.Wait()
}

func TestPorts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	if _, err := b.svc.Ports(t.Context(), "a"); !fault.Is(err, fault.Precondition) {
		t.Errorf("of a VM that does not run: %v", err)
	}
	b.start("a")
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // the fake guest is on this machine
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's end
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	there := func() bool {
		ports, err := b.svc.Ports(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		return slices.ContainsFunc(ports, func(p guestproto.Port) bool {
			return p.Protocol == "tcp" && p.Address == "127.0.0.1" && p.Port == port
		})
	}
	if !there() {
		t.Error("the port is not there")
	}
	_ = l.Close()
	if there() {
		t.Error("the port is there after its end")
	}
}
