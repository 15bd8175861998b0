//go:build fakevmm

package machines_test

import (
	"database/sql"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/machines"
	"banger/internal/microvm"
)

// newPoolBed has a template, and so many spares of it.
func newPoolBed(t *testing.T, ready int) (*bed, machines.Template) {
	t.Helper()
	b := newBed(t)
	b.stop()
	b.templateConfig = machines.TemplateConfig{
		Dir: b.path("templates"), MaxSize: 1 << 40, Ready: ready, ReadyMemory: 1 << 40,
	}
	b.serve()
	made := b.build(microvm.Spec{})
	b.refill(ready)
	return b, made
}

// refill lets the service make spares, and returns their ids when there are so many.
func (b *bed) refill(n int) []microvm.ID {
	b.Helper()
	like, err := b.svc.Create(b.Context(), machines.CreateRequest{Name: "like"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := b.svc.Delete(b.Context(), "like", true); err != nil {
			b.Error(err)
		}
	}()
	machines.TemplatesOf(b.svc).Prepare(like)
	return b.waitSpares(n)
}

func (b *bed) waitSpares(n int) []microvm.ID {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		ids := b.svc.Spares()
		if len(ids) == n {
			return ids
		}
		if time.Now().After(deadline) {
			b.Fatalf("there are the spares %v, want %d", ids, n)
		}
	}
}

func TestSparesAreClaimed(t *testing.T) {
	t.Parallel()
	b, _ := newPoolBed(t, 2)
	spares := b.svc.Spares()
	if vms, err := b.svc.List(t.Context()); err != nil || len(vms) != 0 {
		t.Errorf("spares are listed: %v, %v", vms, err)
	}
	if _, err := b.svc.Get(t.Context(), string(spares[0])); !fault.Is(err, fault.NotFound) {
		t.Errorf("a spare is found: %v", err)
	}
	if found, err := b.svc.Inspect(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("the spares are not as they should be: %+v, %v", found, err)
	}
	first, how := b.from("first", microvm.Spec{
		Labels: map[string]string{"a": "b"}, Env: map[string]string{"C": "d"}, Lifetime: microvm.Lifetime{TTL: time.Hour},
	})
	b.wantStage(how, "claim", "start monitor")
	second, how := b.from("second", microvm.Spec{})
	b.wantStage(how, "claim", "start monitor")
	if !slices.Contains(spares, first.ID) || !slices.Contains(spares, second.ID) || first.ID == second.ID || first.BootID == second.BootID ||
		first.BootID == "" {
		t.Errorf("%s with boot id %s and %s with %s came from the spares %v", first.ID, first.BootID, second.ID, second.BootID, spares)
	}
	if first.Spec.Labels["a"] != "b" || first.Spec.Env["C"] != "d" || first.Status.Settings.TTL != time.Hour || first.Ephemeral {
		t.Errorf("the VM is not what was asked for: %+v, %+v", first.VM, first.Status.Settings)
	}
	if second.Status.Settings.TTL != 0 || len(second.Spec.Labels) != 0 || second.Status.Paused || second.Status.Parked {
		t.Errorf("the second VM has things of the first: %+v, %+v", second.VM, second.Status)
	}
	// Nobody has asked for more of them, so the third is restored; one that differs in what a template is made of boots.
	_, how = b.from("third", microvm.Spec{})
	b.wantStage(how, "restore", "claim")
	b.refill(2)
	_, how = b.from("larger", microvm.Spec{Memory: 2 * microvm.MinMemory})
	b.wantStage(how, "boot", "claim")
	_, how = b.from("fourth", microvm.Spec{})
	b.wantStage(how, "claim", "restore")

	// What was a spare goes through life as any other VM does.
	if _, err := b.svc.Restart(t.Context(), "first", time.Second, nil); err != nil {
		t.Error(err)
	}
	b.mustAnswer("first")
	b.restart()
	b.waitSpares(0)
	b.mustAnswer("second")
}

func TestSpareForATakenName(t *testing.T) {
	t.Parallel()
	b, _ := newPoolBed(t, 1)
	b.create("taken")
	_, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "taken", Template: true}, nil)
	if !fault.Is(err, fault.Exists) {
		t.Errorf("a second VM of one name: %v", err)
	}
	_, how := b.from("free", microvm.Spec{})
	b.wantStage(how, "claim", "restore")
}

// TestSparesEnd walks what ends a spare.
func TestSparesEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(b *bed, template string, monitor int){
		"template deleted": func(b *bed, template string, _ int) {
			if _, err := machines.TemplatesOf(b.svc).Delete(b.Context(), template); err != nil {
				b.Error(err)
			}
		},
		"template gone": func(b *bed, _ string, _ int) {
			if err := os.RemoveAll(b.path("templates")); err != nil {
				b.Error(err)
			}
			b.svc.SweepSpares(b.Context())
		},
		"monitor killed": func(b *bed, _ string, pid int) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				b.Error(err)
			}
		},
		"daemon ends": func(b *bed, _ string, _ int) {
			b.stop()
			b.mustBeEmpty()
			b.serve()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, made := newPoolBed(t, 1)
			monitor, vmm := b.svc.SparePids()
			end(b, made.ID, monitor)
			b.waitSpares(0)
			for _, pid := range []int{monitor, vmm} {
				waitGone(t, pid)
			}
			b.waitEmpty()
			info, _ := b.from("box", microvm.Spec{})
			b.mustAnswer(info.Name)
		})
	}
}

// waitEmpty waits until no VM is recorded.
func (b *bed) waitEmpty() {
	b.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		vms, err := b.db.List(b.Context())
		if err == nil && len(vms) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("there are the VMs %+v, %v", vms, err)
		}
	}
}

func TestSparesOfAKilledDaemonGo(t *testing.T) {
	t.Parallel()
	b, _ := newPoolBed(t, 1)
	vm, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "box", Template: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	monitor := b.get("box").Status.MonitorPid
	// As if it were a spare still.
	db, err := sql.Open("sqlite", b.path("db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(`PRAGMA busy_timeout = 10000; UPDATE vms SET name = 'spare.x', ephemeral = 1 WHERE id = ?`, vm.ID)
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.mustBeEmpty()
	b.mustNotRun(vm.ID, monitor)
}

// TestClaimIsCutOff has the daemon end between the claim of a spare and the start of the VM that it became.
func TestClaimIsCutOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ephemeral bool
		state     microvm.State // that is recorded by then
	}{{false, microvm.Stopped}, {true, microvm.Stopped}, {false, microvm.Starting}, {true, microvm.Starting}} {
		b, _ := newPoolBed(t, 1)
		ephemeral := c.ephemeral
		vm, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "box", Template: true, Ephemeral: ephemeral}, nil)
		if err != nil {
			t.Fatal(err)
		}
		b.setRow(vm.ID, c.state, ephemeral)
		monitor := b.get("box").Status.MonitorPid
		b.restart()
		b.mustNotRun(vm.ID, monitor)
		if ephemeral {
			b.mustBeEmpty()
			continue
		}
		if info := b.get("box"); info.State != microvm.Stopped {
			t.Errorf("the VM is %s", info.State)
		}
		b.start("box")
		b.mustAnswer("box")
	}
}

// TestClaimSurvivesItsSpare kills a spare between its claim and the start: the VM boots.
func TestClaimSurvivesItsSpare(t *testing.T) {
	t.Parallel()
	b, _ := newPoolBed(t, 1)
	if _, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "box", Template: true}, nil); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(b.get("box").Status.MonitorPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, how := b.startTold("box")
	b.wantStage(how, "boot", "restore")
}

// TestClaimFailsAnywhere makes each call of a claim and the start after it fail.
func TestClaimFailsAnywhere(t *testing.T) {
	t.Parallel()
	b, _ := newPoolBed(t, 1)
	for n := int32(1); ; n++ {
		b.calls.arm(n)
		_, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "box", Template: true}, nil)
		if err == nil {
			_, err = b.svc.Start(t.Context(), "box", nil)
		}
		failed := b.calls.failed.Load()
		b.calls.disarm()
		if failed == nil {
			if err != nil {
				t.Fatalf("without any failure: %v", err)
			}
			break
		}
		if info, gone := b.svc.Get(t.Context(), "box"); gone == nil {
			if err == nil {
				b.mustAnswer("box")
			} else if info.State == microvm.Running && *failed != "Get" { // it runs, and only the answer could not be read
				t.Errorf("call %d (%s) failed with %v, and the VM runs", n, *failed, err)
			}
			if err := b.svc.Delete(t.Context(), "box", true); err != nil {
				t.Errorf("call %d (%s): delete: %v", n, *failed, err)
			}
		}
		b.svc.SweepSpares(t.Context())
		vms, err := b.db.List(t.Context())
		if err != nil || len(vms) > len(b.svc.Spares()) {
			t.Fatalf("call %d (%s) leaves the VMs %+v, %v", n, *failed, vms, err)
		}
		if len(b.svc.Spares()) == 0 {
			b.refill(1)
		}
	}
}

func TestSpareNamesAreNobodys(t *testing.T) {
	t.Parallel()
	if err := microvm.ValidateName(microvm.SparePrefix + "x"); err == nil {
		t.Error("a user could give the name of a spare")
	}
	if !(microvm.VM{Name: microvm.SparePrefix + "x"}).IsSpare() || (microvm.VM{Name: strings.TrimSuffix(microvm.SparePrefix, ".")}).IsSpare() {
		t.Error("a spare is not told by its name")
	}
}

func TestClaimThatNobodyStarts(t *testing.T) {
	t.Parallel()
	b, _ := newPoolBed(t, 1)
	vm, err := b.svc.Create(t.Context(), machines.CreateRequest{Name: "box", Template: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	monitor := b.get("box").Status.MonitorPid
	b.svc.ExpireClaim(t.Context(), vm.ID)
	b.mustNotRun(vm.ID, monitor)
	if info := b.get("box"); info.State != microvm.Stopped {
		t.Errorf("the VM is %s", info.State)
	}
	b.start("box")
	b.mustAnswer("box")
	b.svc.ExpireClaim(t.Context(), vm.ID) // one that was started is left alone
	b.mustAnswer("box")
}
