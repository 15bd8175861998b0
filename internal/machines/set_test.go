//go:build fakevmm

package machines_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// set changes a VM and returns the effects by key.
func (b *bed) set(ref string, req machines.SetRequest) map[string]machines.SetResult {
	b.Helper()
	_, results, err := b.svc.Set(b.Context(), ref, req)
	if err != nil {
		b.Fatalf("set: %v", err)
	}
	m := map[string]machines.SetResult{}
	for _, r := range results {
		m[r.Key] = r
	}
	return m
}

func (b *bed) wantEffects(got map[string]machines.SetResult, want map[string]machines.Effect) {
	b.Helper()
	effects := map[string]machines.Effect{}
	for key, r := range got {
		effects[key] = r.Effect
	}
	if !maps.Equal(effects, want) {
		b.Errorf("effects %v, want %v (%+v)", effects, want, got)
	}
}

func (b *bed) wantDisks(vm microvm.VM, want int64) {
	b.Helper()
	for _, disk := range []string{"system.img", "work.img"} {
		if info, err := os.Stat(filepath.Join(b.dirs(vm.ID).State, disk)); err != nil || info.Size() != want {
			b.Errorf("%s: %v, %v, want %d bytes", disk, info, err, want)
		}
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	const size = microvm.MinDiskSize
	// Stopped: the disks grow, the next start brings the rest.
	b.wantEffects(b.set("a", machines.SetRequest{
		VCPUs: new(2), Memory: new(int64(256 << 20)), DiskSize: new(int64(2 * size)), Labels: map[string]string{"k": "v"},
	}), map[string]machines.Effect{"vcpus": "next-start", "memory": "next-start", "disk_size": "now", "label.k": "now"})
	b.wantDisks(vm, 2*size)

	// Running: the disks grow at once.
	first := b.start("a")
	b.wantEffects(b.set("a", machines.SetRequest{
		VCPUs: new(1), Memory: new(int64(256 << 20)), DiskSize: new(int64(3 * size)), Labels: map[string]string{"k": "v"}, RemoveLabels: []string{"none"},
	}), map[string]machines.Effect{
		"vcpus": "next-start", "memory": "unchanged", "disk_size": "now", "label.k": "unchanged", "label.none": "unchanged",
	})
	b.wantDisks(vm, 3*size)
	// Asked for again it is still to come; taken back it is there.
	b.wantEffects(b.set("a", machines.SetRequest{VCPUs: new(1)}), map[string]machines.Effect{"vcpus": "next-start"})
	b.wantEffects(b.set("a", machines.SetRequest{VCPUs: new(2)}), map[string]machines.Effect{"vcpus": "now"})
	b.wantEffects(b.set("a", machines.SetRequest{DiskSize: new(int64(3 * size))}), map[string]machines.Effect{"disk_size": "unchanged"})
	b.wantEffects(b.set("a", machines.SetRequest{RemoveLabels: []string{"k", "k"}}), map[string]machines.Effect{"label.k": "now"})
	if got := b.get("a"); got.BootID != first.BootID || got.Spec.VCPUs != 2 || len(got.Spec.Labels) > 0 || got.DiskApparent != 2*3*size || got.DiskAllocated > size {
		t.Errorf("after all changes: %+v", got)
	}

	// Paused: recorded, and done at the next start.
	if _, err := b.svc.Pause(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	paused := b.set("a", machines.SetRequest{DiskSize: new(int64(4 * size))})
	b.wantEffects(paused, map[string]machines.Effect{"disk_size": "next-start"})
	if !strings.Contains(paused["disk_size"].Detail, "paused") {
		t.Errorf("detail %q does not say why", paused["disk_size"].Detail)
	}
	b.wantDisks(vm, 3*size)
	if _, err := b.svc.Kill(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	b.start("a")
	b.wantDisks(vm, 4*size)
	b.mustAnswer("a")
}

// Disks may be promised more than there is room for, which is said, but none more than its file system has in all.
func TestSetDiskBeyondTheHost(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	var st unix.Statfs_t
	if err := unix.Statfs(b.dir, &st); err != nil {
		t.Fatal(err)
	}
	const block = 4096
	total := int64(st.Blocks) * st.Bsize / block * block // block counts fit
	if total+block > microvm.MaxDiskSize {
		t.Skip("this file system could hold the largest disk there is")
	}
	small := b.set("a", machines.SetRequest{DiskSize: new(int64(2 * microvm.MinDiskSize))})["disk_size"]
	if small.Effect != machines.Now || small.Detail != "" && int64(st.Bavail)*st.Bsize > 1<<30 { // as above
		t.Errorf("a small disk: %+v", small)
	}
	_, _, err := b.svc.Set(t.Context(), "a", machines.SetRequest{DiskSize: new(total + block)})
	if !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Errorf("more than the file system has: %v", err)
	}
	b.wantDisks(vm, 2*microvm.MinDiskSize)
	large := b.set("a", machines.SetRequest{DiskSize: new(total)})["disk_size"]
	if large.Effect != machines.Now || !strings.Contains(large.Detail, "are free") {
		t.Errorf("two disks as large as the file system: %+v", large)
	}
	b.wantDisks(vm, total)
}

func TestSetRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	const size = microvm.MinDiskSize
	ok := new(int64(256 << 20))
	for name, c := range map[string]struct {
		req  machines.SetRequest
		want fault.Kind
		says string
	}{
		"nothing":         {machines.SetRequest{}, fault.Invalid, "nothing to change"},
		"no vCPU":         {machines.SetRequest{VCPUs: new(0), Memory: ok}, fault.Invalid, "vCPUs"},
		"negative vCPUs":  {machines.SetRequest{VCPUs: new(-1)}, fault.Invalid, "vCPUs"},
		"many vCPUs":      {machines.SetRequest{VCPUs: new(microvm.MaxVCPUs + 1)}, fault.Invalid, "vCPUs"},
		"no memory":       {machines.SetRequest{Memory: new(int64(0))}, fault.Invalid, "memory"},
		"negative memory": {machines.SetRequest{Memory: new(int64(-1 << 30))}, fault.Invalid, "memory"},
		"odd memory":      {machines.SetRequest{Memory: new(int64(256<<20 + 1))}, fault.Invalid, "memory"},
		"absurd memory":   {machines.SetRequest{Memory: new(int64(1 << 50))}, fault.Invalid, "memory"},
		"smaller disk":    {machines.SetRequest{DiskSize: new(int64(size - 4096)), Memory: ok}, fault.Invalid, "disk"},
		"no disk":         {machines.SetRequest{DiskSize: new(int64(0)), Memory: ok}, fault.Invalid, "disk"},
		"odd disk":        {machines.SetRequest{DiskSize: new(int64(2*size + 1)), Memory: ok}, fault.Invalid, "disk"},
		"absurd disk":     {machines.SetRequest{DiskSize: new(int64(1 << 60)), Memory: ok}, fault.Invalid, "disk"},
		"negative TTL":    {machines.SetRequest{TTL: new(-time.Second)}, fault.Invalid, "time to live"},
		"empty label":     {machines.SetRequest{Labels: map[string]string{"": "v"}, Memory: ok}, fault.Invalid, "label"},
		"label with =":    {machines.SetRequest{Labels: map[string]string{"a=b": "v"}}, fault.Invalid, "label"},
		"control in key":  {machines.SetRequest{Labels: map[string]string{"a\x1b": "v"}}, fault.Invalid, "label"},
		"long value":      {machines.SetRequest{Labels: map[string]string{"a": strings.Repeat("x", 5000)}}, fault.Invalid, "label"},
		"both":            {machines.SetRequest{Labels: map[string]string{"a": "v"}, RemoveLabels: []string{"a"}}, fault.Invalid, "both"},
	} {
		_, results, err := b.svc.Set(t.Context(), "a", c.req)
		if !fault.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || results != nil {
			t.Errorf("%s: %v, %v, want kind %s and %q", name, results, err, c.want, c.says)
		}
	}
	if got := b.get("a"); got.Spec.Memory != vm.Spec.Memory || got.Spec.DiskSize != size || len(got.Spec.Labels) > 0 {
		t.Errorf("what was refused has changed the VM: %+v", got.Spec)
	}
	b.wantDisks(vm, size)
	if _, _, err := b.svc.Set(t.Context(), "nonesuch", machines.SetRequest{VCPUs: new(1)}); !fault.Is(err, fault.NotFound) {
		t.Errorf("set of a VM that is not there: %v", err)
	}
}

// A crash between the record and the effect loses nothing: the next start does what was recorded.
func TestSetIsRecordedFirst(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a")
	spec := vm.Spec
	spec.DiskSize *= 2
	if err := b.db.UpdateSpec(t.Context(), vm.ID, spec, "a crash came after this"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.start("a")
	b.wantDisks(vm, spec.DiskSize)

	// And what could not be recorded is not done.
	b.calls.arm(3) // List, Get, UpdateSpec
	_, _, err := b.svc.Set(t.Context(), "a", machines.SetRequest{DiskSize: new(2 * spec.DiskSize)})
	if failed := b.calls.failed.Load(); err == nil || failed == nil || *failed != "UpdateSpec" {
		t.Fatalf("set with a broken store: %v", err)
	}
	b.calls.disarm()
	b.wantDisks(vm, spec.DiskSize)
}

func TestMemoryOvercommit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy        config.Overcommit
		refused, said bool
	}{
		{config.OvercommitRefuse, true, false},
		{config.OvercommitWarn, false, true},
		{config.OvercommitAllow, false, false},
	} {
		t.Run(string(c.policy), func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.stop()
			b.policy, b.memory = c.policy, 2*microvm.MinMemory
			b.serve()
			for _, name := range []string{"a", "b", "c"} {
				b.create(name)
			}
			b.start("a")
			b.start("b") // together they have just what there is
			var mu sync.Mutex
			var details []string
			_, err := b.svc.Start(t.Context(), "c", func(u progress.Update) {
				mu.Lock()
				defer mu.Unlock()
				details = append(details, u.Detail, u.Warning)
			})
			if refused := fault.Is(err, fault.Exhausted); refused != c.refused || err != nil && !refused {
				t.Errorf("the third: %v", err)
			}
			if c.refused && (!strings.Contains(err.Error(), "384MiB") || fault.HintOf(err) == "") {
				t.Errorf("the error does not name the sum, or has no hint: %v", err)
			}
			if said := strings.Contains(strings.Join(details, "\n"), "384MiB"); said != c.said {
				t.Errorf("the warning is said: %t; details %q", said, details)
			}
			if c.refused {
				if got := b.get("c"); got.State != microvm.Stopped {
					t.Errorf("the VM that was refused is %s", got.State)
				}
				if _, err := b.svc.Kill(t.Context(), "a", 0); err != nil {
					t.Fatal(err)
				}
				b.start("c") // there is room again
			}
		})
	}
}
