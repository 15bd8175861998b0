//go:build fakevmm

package rpcapi_test

import (
	"slices"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// Every change of a VM is an operation: a set, and the deletion at the end of a run, too.
func TestEveryChangeIsAnOperation(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if exit := b.run(t.Context(), true, "true").end(); exit.GetCode() != 0 {
		t.Errorf("exit %v", exit)
	}
	b.create("b", false)
	vcpus := int32(2)
	if _, err := b.api.VMs.Set(t.Context(), connect.NewRequest(&bangerv1.SetRequest{Vm: "b", Vcpus: &vcpus})); err != nil {
		t.Fatal(err)
	}
	none := int32(0)
	if _, err := b.api.VMs.Set(t.Context(), connect.NewRequest(&bangerv1.SetRequest{Vm: "b", Vcpus: &none})); !fault.Is(err, fault.Invalid) {
		t.Errorf("set of nonsense: %v", err)
	}
	if _, err := b.api.VMs.Set(t.Context(), connect.NewRequest(&bangerv1.SetRequest{Vm: "nosuch", Vcpus: &vcpus})); !fault.Is(err, fault.NotFound) {
		t.Errorf("set of nothing: %v", err)
	}
	res, err := b.api.Operations.ListOperations(t.Context(), connect.NewRequest(&bangerv1.ListOperationsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, op := range res.Msg.GetOperations() {
		got = append(got, op.GetKind()+" "+op.GetVmName()+" "+op.GetState())
	}
	want := []string{"run a succeeded", "delete a succeeded", "create b succeeded", "set b succeeded", "set b failed"}
	if !slices.Equal(got, want) {
		t.Errorf("the operations are %q, want %q", got, want)
	}
}
