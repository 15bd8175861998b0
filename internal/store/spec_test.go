package store_test

import (
	"testing"

	"banger/internal/fault"
	"banger/internal/microvm"
)

func TestUpdateSpec(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	vm, other := sample("a"), sample("b")
	for _, v := range []*microvm.VM{vm, other} {
		if err := s.Insert(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	spec := vm.Spec
	spec.Memory, spec.Labels = 1<<30, map[string]string{"c": "d"}
	if err := s.UpdateSpec(ctx, vm.ID, spec, "more memory"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(ctx, vm.ID)
	if err != nil || got.Spec.Memory != 1<<30 || got.Spec.Labels["c"] != "d" || len(got.Spec.Labels) != 1 || got.State != vm.State {
		t.Errorf("after the update: %+v, %v", got, err)
	}
	if got, err := s.Get(ctx, other.ID); err != nil || got.Spec.Memory != other.Spec.Memory {
		t.Errorf("another VM has changed: %+v, %v", got, err)
	}
	if err := s.UpdateSpec(ctx, "000000000000", spec, ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("a VM that is not there: %v", err)
	}
}
