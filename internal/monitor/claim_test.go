package monitor

import (
	"context"
	"log/slog"
	"testing"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// still is a VMM that does not go on.
type still struct{ hypervisor.VMM }

func (still) Resume(context.Context) error { return fault.New(fault.Internal, "it stands still") }

func TestClaimRefusesWhatIsNoSpare(t *testing.T) {
	t.Parallel()
	spec := &monitorlink.ClaimSpec{Hostname: "box"}
	for name, c := range map[string]struct {
		restore *monitorlink.Restore
		phase   monitorlink.Phase
		spec    *monitorlink.ClaimSpec
		want    fault.Kind
	}{
		"booted":           {nil, monitorlink.Ready, spec, fault.Precondition},
		"restored":         {&monitorlink.Restore{}, monitorlink.Ready, spec, fault.Precondition},
		"not ready":        {&monitorlink.Restore{Parked: true}, monitorlink.Booting, spec, fault.Precondition},
		"for nobody":       {&monitorlink.Restore{Parked: true}, monitorlink.Ready, nil, fault.Invalid},
		"does not go on":   {&monitorlink.Restore{Parked: true}, monitorlink.Ready, spec, fault.Internal},
		"impossible ports": {&monitorlink.Restore{Parked: true}, monitorlink.Ready, &monitorlink.ClaimSpec{Publish: []microvm.Publish{{Protocol: "tcp"}}}, fault.Internal},
	} {
		m := New(monitorlink.Dirs{}, monitorlink.Launch{Restore: c.restore}, nil, slog.New(slog.DiscardHandler))
		m.board.update(func(s *monitorlink.Status) { s.Phase = c.phase })
		if err := m.claim(t.Context(), still{}, c.spec); !fault.Is(err, c.want) {
			t.Errorf("%s: %v, want kind %s", name, err, c.want)
		}
		if c.spec == nil || c.phase != monitorlink.Ready || c.restore == nil || !c.restore.Parked {
			continue
		}
		if err := m.claim(t.Context(), still{}, c.spec); !fault.Is(err, fault.Precondition) {
			t.Errorf("%s, claimed once more: %v", name, err)
		}
	}
}
