package machines

import (
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// TestUrgentClaim interrupts the holder of a lock, and whoever gets it before the urgent one does.
func TestUrgentClaim(t *testing.T) {
	t.Parallel()
	vm := microvm.VM{ID: microvm.NewID(), Name: "a"}
	before := 0
	for range 200 {
		tab := table{entries: map[microvm.ID]*entry{}}
		first, err := tab.acquire(t.Context(), vm, claimant{op: "start"})
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 2)
		go func() {
			g, err := tab.acquire(t.Context(), vm, claimant{op: "stop", wait: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case <-g.interrupted:
				order <- "interrupted"
			default:
				order <- "undisturbed"
			}
			g.release()
		}()
		waiting(t, &tab, vm.ID, 2)
		go func() {
			g, err := tab.acquire(t.Context(), vm, claimant{op: "delete", wait: time.Minute, urgent: true})
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case <-g.interrupted:
				t.Error("the urgent one interrupted itself")
			default:
			}
			order <- "urgent"
			g.release()
		}()
		waiting(t, &tab, vm.ID, 3)
		select {
		case <-first.interrupted:
		case <-time.After(time.Minute):
			t.Fatal("the holder is not interrupted")
		}
		first.release()
		if got := <-order; got == "interrupted" {
			before++
			<-order
		} else if got != "urgent" {
			t.Fatalf("one that got the lock before the urgent one is %s", got)
		} else if got := <-order; got != "undisturbed" {
			t.Fatalf("one that got the lock after the urgent one is %s", got)
		}
	}
	if before == 0 {
		t.Error("nobody ever got the lock before the urgent one: nothing was tested")
	}
}

// waiting waits until so many operations hold or await the lock.
func waiting(t *testing.T, tab *table, id microvm.ID, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Microsecond) {
		tab.mu.Lock()
		users := 0
		if e := tab.entries[id]; e != nil {
			users = e.users
		}
		tab.mu.Unlock()
		if users == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d operations use the lock, want %d", users, n)
		}
	}
}

// TestUrgentClaimThatGivesUp leaves nothing behind that would interrupt others.
func TestUrgentClaimThatGivesUp(t *testing.T) {
	t.Parallel()
	vm := microvm.VM{ID: microvm.NewID(), Name: "a"}
	tab := table{entries: map[microvm.ID]*entry{}}
	first, err := tab.acquire(t.Context(), vm, claimant{op: "start"})
	if err != nil {
		t.Fatal(err)
	}
	keep, err := tab.acquire(t.Context(), microvm.VM{ID: microvm.NewID()}, claimant{op: "another VM"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tab.acquire(t.Context(), vm, claimant{op: "kill", wait: time.Millisecond, urgent: true}); !fault.Is(err, fault.Busy) {
		t.Fatalf("kill: %v", err)
	}
	got := make(chan grant)
	go func() {
		g, err := tab.acquire(t.Context(), vm, claimant{op: "stop", wait: time.Minute})
		if err != nil {
			t.Error(err)
		}
		got <- g
	}()
	waiting(t, &tab, vm.ID, 2)
	first.release()
	next := <-got
	select {
	case <-next.interrupted:
		t.Error("the next one is interrupted for one that has given up")
	case <-keep.interrupted:
		t.Error("another VM's operation is interrupted")
	default:
	}
	next.release()
	keep.release()
	if len(tab.entries) != 0 {
		t.Errorf("%d entries are left", len(tab.entries))
	}
}
