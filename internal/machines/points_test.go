//go:build fakevmm

package machines_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// told collects what a start says.
type told struct {
	mu       sync.Mutex
	stages   []string
	warnings []string
}

func (t *told) sink(u progress.Update) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.stages, u.Stage) {
		t.stages = append(t.stages, u.Stage)
	}
	if u.Warning != "" {
		t.warnings = append(t.warnings, u.Warning)
	}
}

// from makes and starts a VM that may come from a template, and says how it came up.
func (b *bed) from(name string, spec microvm.Spec) (machines.Info, *told) {
	b.Helper()
	vm, err := b.svc.Create(b.Context(), machines.CreateRequest{Name: name, Spec: spec, Template: true}, nil)
	if err != nil {
		b.Fatalf("create %s: %v", name, err)
	}
	return b.startTold(vm.Name)
}

func (b *bed) startTold(name string) (machines.Info, *told) {
	b.Helper()
	how := &told{}
	info, err := b.svc.Start(b.Context(), name, how.sink)
	if err != nil {
		b.Fatalf("start %s: %v", name, err)
	}
	if out := b.exec(name, "echo", "hi"); out != "hi\n" {
		b.Errorf("exec in %s: %q", name, out)
	}
	return info, how
}

func (b *bed) wantStage(how *told, want, not string) {
	b.Helper()
	if !slices.Contains(how.stages, want) || slices.Contains(how.stages, not) {
		b.Errorf("the stages are %q, want %s and not %s", how.stages, want, not)
	}
}

func (b *bed) build(spec microvm.Spec) machines.Template {
	b.Helper()
	t, err := machines.TemplatesOf(b.svc).Build(b.Context(), spec, nil)
	if err != nil {
		b.Fatalf("build template: %v", err)
	}
	return t
}

func (b *bed) templates() []machines.Template {
	b.Helper()
	all, err := machines.TemplatesOf(b.svc).List(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return all
}

func newTemplateBed(t *testing.T) *bed {
	t.Helper()
	b := newBed(t)
	b.stop()
	b.templateConfig = machines.TemplateConfig{Dir: b.path("templates"), MaxSize: 1 << 40}
	b.serve()
	return b
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	first, how := b.from("first", microvm.Spec{})
	b.wantStage(how, "boot", "restore")
	made := b.build(microvm.Spec{})
	if again := b.build(microvm.Spec{}); again.ID != made.ID || !again.Created.Equal(made.Created) {
		t.Errorf("a second build made %+v beside %+v", again, made)
	}
	if vms, err := b.svc.List(t.Context()); err != nil || len(vms) != 1 {
		t.Errorf("VMs: %v, %v", vms, err)
	}
	second, how := b.from("second", microvm.Spec{Env: map[string]string{"A": "B"}, Lifetime: microvm.Lifetime{TTL: time.Hour}})
	b.wantStage(how, "restore", "boot")
	third, how := b.from("third", microvm.Spec{})
	b.wantStage(how, "restore", "boot")
	if ids := []string{first.BootID, second.BootID, third.BootID}; ids[1] == "" || ids[1] == ids[0] || ids[1] == ids[2] {
		t.Errorf("boot ids %q", ids)
	}
	// It was the first start only.
	if _, err := b.svc.Stop(t.Context(), "second", time.Second, nil); err != nil {
		t.Fatal(err)
	}
	_, how = b.startTold("second")
	b.wantStage(how, "boot", "restore")
	// Without a template of its kind, and without leave, a VM boots.
	_, how = b.from("other", microvm.Spec{VCPUs: 2})
	b.wantStage(how, "boot", "restore")
	b.create("asked")
	_, how = b.startTold("asked")
	b.wantStage(how, "boot", "restore")
	// Those that came from it go on without it.
	if id, err := machines.TemplatesOf(b.svc).Delete(t.Context(), made.ID[:6]); err != nil || id != made.ID {
		t.Errorf("delete: %s, %v", id, err)
	}
	b.exec("third", "true")
	if _, err := machines.TemplatesOf(b.svc).Delete(t.Context(), made.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("delete it twice: %v", err)
	}
}

// Whatever matters to a guest that was saved makes a template of its own.
func TestTemplateKinds(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	seen := map[string]string{}
	add := func(what string, spec microvm.Spec) {
		made := b.build(spec)
		if other, there := seen[made.ID]; there {
			t.Errorf("%s and %s share a template", what, other)
		}
		seen[made.ID] = what
	}
	add("default", microvm.Spec{})
	add("vcpus", microvm.Spec{VCPUs: 2})
	add("memory", microvm.Spec{Memory: 2 * microvm.MinMemory})
	add("disk", microvm.Spec{DiskSize: 2 * microvm.MinDiskSize})
	add("network", microvm.Spec{Net: microvm.NetUser})
	add("init", microvm.Spec{Init: microvm.InitAuto})
	for _, name := range []string{"kernel", "initramfs"} {
		if err := os.WriteFile(b.path(name), []byte("another "+name), 0o600); err != nil {
			t.Fatal(err)
		}
		add(name, microvm.Spec{})
	}
	b.host.version = "2"
	add("version", microvm.Spec{})
	var stale int
	for _, made := range b.templates() {
		if strings.Contains(made.Problem, "version of fake (, now 2)") {
			stale++
		}
	}
	if stale != len(seen)-1 {
		t.Errorf("%d of %d templates are said to be of another version", stale, len(seen))
	}
}

// A template that is not what it was is told of and goes; the VM boots.
func TestBrokenTemplate(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	for name, damage := range map[string]func(dir string) error{
		"state":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "state"), []byte("junk"), 0o600) },
		"memory":   func(dir string) error { return os.Truncate(filepath.Join(dir, "memory"), 1) },
		"disk":     func(dir string) error { return os.Remove(filepath.Join(dir, "work.img")) },
		"manifest": func(dir string) error { return os.WriteFile(filepath.Join(dir, "manifest.json"), []byte("{"), 0o600) },
	} {
		made := b.build(microvm.Spec{})
		vm, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "vm-" + name, Template: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(b.path("templates", made.ID)); err != nil {
			t.Fatal(err)
		}
		_, how := b.startTold(vm.Name)
		b.wantStage(how, "boot", "")
		if len(how.warnings) != 1 || !strings.Contains(how.warnings[0], "the VM boots") {
			t.Errorf("%s: told %q", name, how.warnings)
		}
		if left := b.templates(); len(left) != 0 {
			t.Errorf("%s: left %+v", name, left)
		}
	}
	// One that went in between, and a start that was cut off in the midst of a restore.
	made := b.build(microvm.Spec{})
	for _, name := range []string{"gone", "cut"} {
		if _, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: name, Template: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	dir := b.get("cut").Directory
	if err := os.Rename(filepath.Join(dir, "origin.json"), filepath.Join(dir, "origin.taken.json")); err != nil {
		t.Fatal(err)
	}
	_, how := b.startTold("cut")
	b.wantStage(how, "boot", "")
	if len(b.templates()) != 1 {
		t.Error("a start that was cut off has cost the template")
	}
	if _, err := machines.TemplatesOf(b.svc).Delete(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	_, how = b.startTold("gone")
	b.wantStage(how, "boot", "")
	for _, name := range []string{"cut", "gone"} {
		left, _ := filepath.Glob(filepath.Join(b.get(name).Directory, "origin*"))
		if len(left) > 0 {
			t.Errorf("%s keeps %v", name, left)
		}
	}
}

// A restore that fails costs the start nothing but the boot.
func TestRestoreFails(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	b.build(microvm.Spec{})
	if _, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "a", Template: true}, nil); err != nil {
		t.Fatal(err)
	}
	// The fake VMM finds that the state is not its own, although nothing about the file has changed.
	dir := b.path("templates", b.templates()[0].ID)
	other := strings.Repeat("x", 40)
	if err := os.WriteFile(filepath.Join(dir, "state"), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := machines.Remember(dir, "state"); err != nil {
		t.Fatal(err)
	}
	_, how := b.startTold("a")
	b.wantStage(how, "boot", "")
	b.wantStage(how, "restore", "")
	if len(how.warnings) != 1 || len(b.templates()) != 0 {
		t.Errorf("told %q; left %+v", how.warnings, b.templates())
	}
}

func TestTemplateInBackground(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	info, _ := b.from("a", microvm.Spec{})
	machines.TemplatesOf(b.svc).Prepare(info.VM)
	for deadline := time.Now().Add(time.Minute); len(b.templates()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no template is made")
		}
	}
	_, how := b.from("b", microvm.Spec{})
	b.wantStage(how, "restore", "boot")
	b.waitAlone("a", "b")
}

// waitAlone waits until only these VMs are there, the one that a template was made with included.
func (b *bed) waitAlone(names ...string) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		vms, err := b.db.List(b.Context())
		if err == nil && len(vms) == len(names) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("VMs: %+v, %v", vms, err)
		}
	}
}

// What takes too much room goes, the template that was used longest ago first; what a crash left goes at the next start.
func TestTemplatesArePruned(t *testing.T) {
	t.Parallel()
	b := newTemplateBed(t)
	b.stop()
	b.templateConfig.MaxSize = 1
	b.serve()
	old := b.build(microvm.Spec{})
	b.build(microvm.Spec{VCPUs: 2})
	if left := b.templates(); len(left) != 1 || left[0].ID == old.ID {
		t.Errorf("left are %+v", left)
	}
	for _, dir := range []string{"templates/.new-x", "forks/0123456789ab"} {
		if err := os.MkdirAll(b.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b.restart()
	for _, dir := range []string{"templates/.new-x", "forks/0123456789ab"} {
		if _, err := os.Stat(b.path(dir)); err == nil {
			t.Errorf("%s is still there", dir)
		}
	}
}

func TestFork(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	points := machines.PointsOf(b.svc)
	if _, err := points.Fork(t.Context(), "a", machines.ForkRequest{Count: 1}, nil); !fault.Is(err, fault.Precondition) || fault.HintOf(err) == "" {
		t.Errorf("of a VM that does not run: %v", err)
	}
	source := b.start("a")
	b.create("a-2")
	made, err := points.Fork(t.Context(), "a", machines.ForkRequest{Count: 3, Labels: map[string]string{"k": "v"}}, nil)
	if err != nil || len(made) != 3 {
		t.Fatalf("%+v, %v", made, err)
	}
	var names []string
	ids := map[string]bool{source.BootID: true}
	for _, info := range made {
		names = append(names, info.Name)
		ids[info.BootID] = true
		if info.State != microvm.Running || info.Spec.Labels["k"] != "v" || b.exec(info.Name, "echo", "x") != "x\n" {
			t.Errorf("%+v", info)
		}
	}
	if !slices.Equal(names, []string{"a-1", "a-3", "a-4"}) || len(ids) != 4 {
		t.Errorf("names %q, %d boot ids", names, len(ids))
	}
	if b.get("a").BootID != source.BootID || b.exec("a", "echo", "x") != "x\n" {
		t.Error("the VM itself does not go on")
	}
	// One whose name is taken is told of; the others are made.
	made, err = points.Fork(t.Context(), "a-1", machines.ForkRequest{Names: []string{"a", "b"}}, nil)
	if err == nil || !strings.Contains(err.Error(), "as a:") || len(made) != 1 || made[0].Name != "b" {
		t.Errorf("%+v, %v", made, err)
	}
	for _, bad := range []machines.ForkRequest{{}, {Count: 101}, {Names: []string{"x", "x"}}, {Names: []string{"X"}}} {
		if _, err := points.Fork(t.Context(), "a", bad, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if left, err := os.ReadDir(b.path("forks")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a")
	points := machines.PointsOf(b.svc)
	if _, err := points.CreateSnapshot(t.Context(), "a", "x", nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("of a VM that does not run: %v", err)
	}
	before := b.start("a")
	if s, err := points.CreateSnapshot(t.Context(), "a", "one", nil); err != nil || s.Name != "one" || s.VM != "a" {
		t.Fatalf("%+v, %v", s, err)
	}
	for name, kind := range map[string]fault.Kind{"one": fault.Exists, "../x": fault.Invalid, ".new-x": fault.Invalid} {
		if _, err := points.CreateSnapshot(t.Context(), "a", name, nil); !fault.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "one"}, nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("in place while it runs: %v", err)
	}
	if _, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "two"}, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	if info, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "one", As: "b"}, nil); err != nil || info.Name != "b" {
		t.Errorf("%+v, %v", info, err)
	}
	info, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "one", Force: true}, nil)
	if err != nil || info.State != microvm.Running || info.BootID == before.BootID {
		t.Errorf("%+v, %v", info, err)
	}
	b.exec("a", "true")
	b.exec("b", "true")
	// A crash in the midst of it: the next start finishes it.
	if _, err := b.svc.Kill(t.Context(), "a", 0); err != nil {
		t.Fatal(err)
	}
	dir := b.get("a").Directory
	if err := os.WriteFile(filepath.Join(dir, "revert.json"), []byte(`{"Point": "`+filepath.Join(dir, "snapshots", "one")+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart()
	points = machines.PointsOf(b.svc)
	_, how := b.startTold("a")
	b.wantStage(how, "restore", "boot")
	// One that is damaged says so, and can be deleted.
	if err := os.WriteFile(filepath.Join(dir, "snapshots", "one", "state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := points.Snapshots(t.Context(), "a")
	if err != nil || len(all) != 1 || all[0].Problem == "" {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := points.Restore(t.Context(), "a", machines.RestoreRequest{Snapshot: "one", As: "c"}, nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("of a damaged one: %v", err)
	}
	if err := points.DeleteSnapshot(t.Context(), "a", "one"); err != nil {
		t.Error(err)
	}
	if all, err := points.Snapshots(t.Context(), "a"); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}
