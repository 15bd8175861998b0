package main

import (
	"context"
	"io"
	"os"
	"slices"
	"time"

	"banger/internal/backends"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/rootfs"
)

// bareVM is a VMM as banger's monitor would start it, and nothing of banger around it.
type bareVM struct {
	vmm     hypervisor.VMM
	session *guestlink.Session
	dir     string
	wire    io.Closer
}

// bareBoot boots the VMM with what banger's monitor would give it, and measures until the agent's answer.
func (b *bed) bareBoot(ctx context.Context) (_ *bareVM, took time.Duration, err error) {
	v := &bareVM{}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.dir, err = os.MkdirTemp(b.dir, "bare"); err != nil {
		return nil, 0, err
	}
	m := b.bare.Machine
	m.Dir = v.dir
	m.Disks = slices.Clone(m.Disks)
	for i, d := range m.Disks {
		if !d.ReadOnly {
			m.Disks[i].Path = v.dir + "/" + d.Serial
			if err := rootfs.Blank(ctx, m.Disks[i].Path, 8<<30, rootfs.BlankOptions{}); err != nil {
				return nil, 0, err
			}
		}
	}
	if v.wire, err = deadWire(&m); err != nil {
		return nil, 0, err
	}
	backend, err := backends.Make(b.bare.Backend, b.bare.Host)
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	if v.vmm, err = backend.Boot(ctx, m); err != nil {
		return nil, 0, err
	}
	go io.Copy(io.Discard, v.vmm.Console()) //nolint:errcheck // ends with the VMM
	if v.session, _, err = guestlink.Open(ctx, v.vmm.Link()); err != nil {
		return nil, 0, err
	}
	return v, time.Since(began), nil
}

// shutDown asks the guest to power off and measures until the VMM's end.
func (v *bareVM) shutDown(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if err := guestlink.NewClient(v.session).Shutdown(ctx, guestproto.PowerOff, 0); err != nil {
		return 0, err
	}
	select {
	case <-v.vmm.Done():
		return time.Since(began), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (v *bareVM) close() {
	if v.session != nil {
		_ = v.session.Close()
	}
	if v.vmm != nil {
		v.vmm.Kill()
	}
	if v.wire != nil {
		_ = v.wire.Close()
	}
	_ = os.RemoveAll(v.dir)
}

// settled is how long a guest is left alone after its boot before it counts as idle.
const settled = 2 * time.Second

// stopIdle compares `vm stop` of an idle VM with the guest's own way down on the bare VMM, turn by turn.
func stopIdle(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	const vm = "bench-stop"
	if _, err := b.banger(ctx, "vm", "create", "--quiet", "--no-start", "--name", vm, "--init", "agent"); err != nil {
		return nil, err
	}
	defer b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", vm) //nolint:errcheck // close tells
	var whole, floor []time.Duration
	for range rounds {
		d, err := b.bareStop(ctx)
		if err != nil {
			return nil, err
		}
		floor = append(floor, d)
		if _, err := b.banger(ctx, "start", "--quiet", vm); err != nil {
			return nil, err
		}
		time.Sleep(settled)
		if d, err = b.banger(ctx, "vm", "stop", "--quiet", vm); err != nil {
			return nil, err
		}
		whole = append(whole, d)
	}
	budget, formula := median(floor)+100*time.Millisecond, "floor + 100 ms"
	if most := 1500 * time.Millisecond; b.bare.Accelerator != "kvm" && budget > most {
		budget, formula = most, "without KVM at most"
	}
	return []figure{{
		"vm stop, idle", spread(whole), "bare VMM, from asked to gone: " + spread(floor), formula + " = " + ms(budget), median(whole) <= budget,
	}}, nil
}

func (b *bed) bareStop(ctx context.Context) (time.Duration, error) {
	v, _, err := b.bareBoot(ctx)
	if err != nil {
		return 0, err
	}
	defer v.close()
	time.Sleep(settled)
	return v.shutDown(ctx)
}
