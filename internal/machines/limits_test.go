//go:build fakevmm

package machines_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/cgroup"
	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
)

// inGroup checks that the VM's cgroup for CPU, a directory, holds its processes and has a weight, as the kernel writes it.
func (b *bed) inGroup(dir, weight string) {
	b.Helper()
	name := map[int]string{1: "cpu.shares", 2: "cpu.weight"}[b.cgroups[cgroup.CPU].Version]
	got, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || strings.TrimSpace(string(got)) != weight {
		b.Errorf("%s is %q, %v, want %s", name, got, err, weight)
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	st := b.get("a").Status
	for _, pid := range []int{st.MonitorPid, st.VMMPid} {
		if !slices.Contains(strings.Fields(string(procs)), fmt.Sprint(pid)) {
			b.Errorf("process %d of the VM is not among %q (%v)", pid, procs, err)
		}
	}
}

func (b *bed) noGroup(id microvm.ID) {
	b.Helper()
	for _, parent := range b.cgroups {
		if _, err := os.Stat(filepath.Join(parent.Dir, "banger-"+string(id))); !os.IsNotExist(err) {
			b.Errorf("a cgroup of VM %s is left in %s (%v)", id, parent.Dir, err)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	place, missing := cgroup.Find()
	if _, ok := place[cgroup.CPU]; !ok {
		t.Skipf("no cgroup with a CPU weight can be made here: %v", missing)
	}
	weights := map[int]map[int]string{1: {100: "1024", 300: "3072", 500: "5120"}, 2: {100: "100", 300: "300", 500: "500"}}[place[cgroup.CPU].Version]
	b := newBed(t)
	b.stop()
	b.cgroups = place
	b.serve()
	vm := b.create("a")
	group := filepath.Join(place[cgroup.CPU].Dir, "banger-"+string(vm.ID))
	cpu := func(n int) machines.SetRequest { return machines.SetRequest{Weights: microvm.Weights{CPU: n}} }
	b.start("a")
	b.inGroup(group, weights[100])
	b.wantSet(cpu(100), "cpu_weight", machines.Unchanged, "")
	b.wantSet(cpu(300), "cpu_weight", machines.Now, "")
	b.inGroup(group, weights[300])
	b.restart()
	b.wantSet(cpu(300), "cpu_weight", machines.Unchanged, "")

	// However the VM ends, no group is left; and the next start has the weight that was recorded.
	if _, err := b.svc.Stop(t.Context(), "a", 10*time.Second, nil); err != nil {
		t.Fatal(err)
	}
	b.noGroup(vm.ID)
	b.wantSet(cpu(500), "cpu_weight", machines.NextStart, "")
	info := b.start("a")
	b.inGroup(group, weights[500])
	if err := syscall.Kill(info.Status.MonitorPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.waitState("a", microvm.Stopped)
	b.noGroup(vm.ID)
	info = b.start("a")
	b.stop() // the daemon dies, then the monitor
	if err := syscall.Kill(info.Status.MonitorPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.serve()
	if err := b.svc.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.waitState("a", microvm.Stopped)
	b.noGroup(vm.ID)
	b.start("a")
	if err := b.svc.Delete(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	b.noGroup(vm.ID)
}

// What nobody would enforce is not taken from who asks for it, with the reason; VMs are as good without.
func TestWeightsThatNobodyEnforces(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	spec := microvm.Spec{Weights: microvm.Weights{CPU: 200}}
	_, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "a", Spec: spec}, nil)
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "this is a test") || fault.HintOf(err) == "" {
		t.Errorf("create: %v", err)
	}
	b.create("a")
	b.start("a")
	if _, _, err := b.svc.Set(t.Context(), "a", machines.SetRequest{Weights: spec.Weights}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("set: %v", err)
	}
	for _, n := range []int{-1, microvm.MaxWeight + 1} {
		spec := b.get("a").Spec
		spec.Weights.IO = n
		if err := spec.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("a weight of %d: %v", n, err)
		}
	}
}
