//go:build fakevmm

package rpcapi_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

func TestSet(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a", true)
	const size = 2 * microvm.MinDiskSize
	res, err := b.api.VMs.Set(t.Context(), connect.NewRequest(&bangerv1.SetRequest{
		Vm: vm.GetId(), Vcpus: new(int32(2)), Memory: new(int64(256 << 20)), DiskSize: new(int64(size)),
		Labels: map[string]string{"k": "v"}, RemoveLabels: []string{"none"},
		Ttl: durationpb.New(time.Hour), IdleTimeout: durationpb.New(0),
	}))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range res.Msg.GetResults() {
		got[r.GetKey()] = r.GetValue() + " " + r.GetEffect()
	}
	for key, want := range map[string]string{
		"vcpus": "2 next-start", "memory": "256MiB next-start", "disk_size": "128MiB now", "ttl": "1h0m0s now",
		"idle_timeout": "none unchanged", "label.k": "v now", "label.none": " unchanged",
	} {
		if got[key] != want {
			t.Errorf("%s: %q, want %q", key, got[key], want)
		}
	}
	after := res.Msg.GetVm()
	if s := after.GetSpec(); s.GetVcpus() != 2 || s.GetDiskSize() != size || s.GetLabels()["k"] != "v" || s.GetTtl().AsDuration() != time.Hour ||
		after.GetDiskApparent() != 2*size || after.GetDiskAllocated() > size {
		t.Errorf("the VM after it: %v", after)
	}
	_, err = b.api.VMs.Set(t.Context(), connect.NewRequest(&bangerv1.SetRequest{Vm: "a", Vcpus: new(int32(0))}))
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("no vCPU: %v", err)
	}
}
