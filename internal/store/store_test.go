package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/store"
)

func open(t *testing.T) (*store.Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "banger.db")
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, path
}

func sample(name string) *microvm.VM {
	return &microvm.VM{
		ID: microvm.NewID(), Name: name, State: microvm.Creating, ImageDigest: "sha256:00",
		Spec: microvm.Spec{Image: "debian-bookworm", VCPUs: 1, Memory: 512 << 20, Labels: map[string]string{"a": "b"}},
	}
}

func TestInsertGetListRemove(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	a := sample("a")
	if err := s.Insert(ctx, a); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(ctx, a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "a" || got.Spec.Labels["a"] != "b" || !got.CreatedAt.Equal(a.CreatedAt) || got.State != microvm.Creating {
		t.Fatalf("got %+v, want %+v", got, a)
	}
	if err := s.Insert(ctx, sample("a")); !fault.Is(err, fault.Exists) {
		t.Fatalf("a second VM of the same name: %v", err)
	}
	// A VM on its way out gives up its name.
	if err := s.SetState(ctx, a.ID, store.Change{To: microvm.Deleting}); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(ctx, sample("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, a.ID); !fault.Is(err, fault.NotFound) {
		t.Fatalf("after removal: %v", err)
	}
	if vms, err := s.List(ctx); err != nil || len(vms) != 1 {
		t.Fatalf("list: %v, %v", vms, err)
	}
}

// Every pair of states is tried: what the table allows is recorded, all else is refused and changes nothing.
func TestSetStateFollowsTheTable(t *testing.T) {
	t.Parallel()
	s, path := open(t)
	ctx := t.Context()
	raw, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close() //nolint:errcheck // test
	vm := sample("a")
	if err := s.Insert(ctx, vm); err != nil {
		t.Fatal(err)
	}
	for _, from := range microvm.States() {
		for _, to := range microvm.States() {
			if _, err := raw.ExecContext(ctx, `UPDATE vms SET state = ?`, from); err != nil {
				t.Fatal(err)
			}
			err := s.SetState(ctx, vm.ID, store.Change{To: to, Cause: "because"})
			got, _ := s.Get(ctx, vm.ID)
			if from.MayBecome(to) {
				if err != nil || got.State != to || got.Cause != "because" {
					t.Errorf("%s -> %s: %v, %+v", from, to, err, got)
				}
			} else if !fault.Is(err, fault.Precondition) || got.State != from {
				t.Errorf("%s -> %s: %v, %+v", from, to, err, got)
			}
		}
	}
}

func TestBootIDLivesAsLongAsTheGuest(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	vm := sample("a")
	vm.State = microvm.Starting
	if err := s.Insert(ctx, vm); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		change store.Change
		want   string
	}{
		{store.Change{To: microvm.Running, BootID: "b1"}, "b1"},
		{store.Change{To: microvm.Paused}, "b1"},
		{store.Change{To: microvm.Running}, "b1"},
		{store.Change{To: microvm.Stopping}, ""},
	} {
		if err := s.SetState(ctx, vm.ID, step.change); err != nil {
			t.Fatal(err)
		}
		if got, _ := s.Get(ctx, vm.ID); got.BootID != step.want {
			t.Fatalf("%s: boot id %q, want %q", step.change.To, got.BootID, step.want)
		}
	}
}

func TestImageUsers(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := t.Context()
	users := func() []store.ImageUser {
		t.Helper()
		users, err := s.ImageUsers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return users
	}
	vm := sample("a")
	vm.ImageDigest = ""
	if got := users(); len(got) != 0 {
		t.Fatalf("users without a VM: %v", got)
	}
	if err := s.Insert(ctx, vm); err != nil {
		t.Fatal(err)
	}
	want := store.ImageUser{VM: "a", ID: vm.ID, Image: vm.Spec.Image}
	if got := users(); len(got) != 1 || got[0] != want {
		t.Fatalf("while it is created: %v", got)
	}
	if err := s.SetImage(ctx, vm.ID, "sha256:01", vm.Spec); err != nil {
		t.Fatal(err)
	}
	want.Digest = "sha256:01"
	if got := users(); len(got) != 1 || got[0] != want {
		t.Fatalf("with its image: %v", got)
	}
	if err := s.Remove(ctx, vm.ID); err != nil {
		t.Fatal(err)
	}
	if got := users(); len(got) != 0 {
		t.Fatalf("after its end: %v", got)
	}
}

func TestParallelWriters(t *testing.T) {
	t.Parallel()
	s, path := open(t)
	other, err := store.Open(t.Context(), path) // as a second process would
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close() //nolint:errcheck // test
	var wg sync.WaitGroup
	for i := range 40 {
		st := []*store.Store{s, other}[i%2]
		wg.Go(func() {
			vm := sample("vm-" + strconv.Itoa(i))
			if err := st.Insert(context.Background(), vm); err != nil {
				t.Error(err)
			}
			if err := st.SetState(context.Background(), vm.ID, store.Change{To: microvm.Stopped}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if vms, err := s.List(t.Context()); err != nil || len(vms) != 40 {
		t.Fatalf("%d VMs, %v", len(vms), err)
	}
}

func TestNewerDatabaseIsRefusedAndUntouched(t *testing.T) {
	t.Parallel()
	s, path := open(t)
	if err := s.Insert(t.Context(), sample("a")); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	raw, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.ExecContext(t.Context(), `PRAGMA user_version = 999`); err != nil {
		t.Fatal(err)
	}
	_ = raw.Close()
	before, _ := os.ReadFile(path)
	if _, err := store.Open(t.Context(), path); !fault.Is(err, fault.Precondition) {
		t.Fatalf("open: %v", err)
	}
	after, _ := os.ReadFile(path)
	if !bytes.Equal(before, after) {
		t.Fatal("the refused database was changed")
	}
}

func TestDamagedDatabaseSaysSo(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "banger.db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), path); !fault.Is(err, fault.Corrupt) || fault.HintOf(err) == "" {
		t.Fatalf("open: %v", err)
	}
}
