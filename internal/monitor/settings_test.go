package monitor

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// balloonVMM is a VMM whose guest gives up memory step by step, and never more than it wants to.
type balloonVMM struct {
	hypervisor.VMM

	size, target, least, step int64
}

func (v *balloonVMM) SetMemory(_ context.Context, size int64) error {
	v.target = size
	return nil
}

func (v *balloonVMM) Memory(context.Context) (int64, error) {
	v.size = max(v.size-v.step, v.target, v.least)
	return v.size, nil
}

func TestSetMemoryWaitsForTheGuest(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for name, c := range map[string]struct {
		vmm     balloonVMM
		reached int64
		want    fault.Kind
		within  time.Duration
	}{
		"quick":   {balloonVMM{step: 512 * mib}, 256 * mib, 0, time.Second},
		"slow":    {balloonVMM{step: mib}, 256 * mib, 0, 20 * time.Second},
		"stuck":   {balloonVMM{step: 64 * mib, least: 400 * mib}, 400 * mib, fault.Timeout, 2 * memoryStall},
		"hostile": {balloonVMM{step: 1}, 0, fault.Timeout, memoryWait + time.Second}, // a byte at a time
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				launch := monitorlink.Launch{ID: "0123456789ab", Machine: hypervisor.Machine{Memory: 512 * mib}}
				m := New(monitorlink.Dirs{}, launch, nil, slog.New(slog.DiscardHandler))
				vmm := c.vmm
				vmm.size = 512 * mib
				began := time.Now()
				before, err := m.set(t.Context(), &vmm, &monitorlink.SettingsChange{Memory: new(int64(256 * mib))})
				if err == nil && c.want != 0 || err != nil && !fault.Is(err, c.want) || before.Memory != 512*mib {
					t.Errorf("set = %+v, %v", before, err)
				}
				if c.want != 0 && !strings.Contains(err.Error(), "the guest has ") {
					t.Errorf("%v does not say what was reached", err)
				}
				if took := time.Since(began); took > c.within {
					t.Errorf("it took %s", took)
				}
				if got := m.board.get().Settings.Memory; c.reached != 0 && got != c.reached {
					t.Errorf("the status says %d bytes, want %d", got, c.reached)
				}
			})
		})
	}
}

func TestSetRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	m := New(monitorlink.Dirs{}, monitorlink.Launch{Lifetime: microvm.Lifetime{TTL: time.Hour}}, nil, slog.New(slog.DiscardHandler))
	began := time.Now().Add(-time.Minute)
	m.began.Store(&began)
	var plain struct{ hypervisor.VMM } // can nothing
	for name, c := range map[string]struct {
		change *monitorlink.SettingsChange
		want   fault.Kind
	}{
		"nothing":      {nil, fault.Invalid},
		"memory":       {&monitorlink.SettingsChange{Memory: new(int64(1 << 28))}, fault.Unsupported},
		"weight":       {&monitorlink.SettingsChange{CPUWeight: new(200)}, fault.Unsupported},
		"time is over": {&monitorlink.SettingsChange{TTL: new(time.Second)}, fault.Precondition},
	} {
		if _, err := m.set(t.Context(), plain, c.change); !fault.Is(err, c.want) {
			t.Errorf("%s: %v, want kind %s", name, err, c.want)
		}
	}
	if got := m.board.get().Settings.TTL; got != time.Hour {
		t.Errorf("what was refused has changed the time to live to %s", got)
	}
	if _, err := m.set(t.Context(), plain, &monitorlink.SettingsChange{TTL: new(time.Duration(0))}); err != nil {
		t.Error(err)
	}
	if got := m.board.get().Settings.TTL; got != 0 {
		t.Errorf("the time to live is %s", got)
	}
}
