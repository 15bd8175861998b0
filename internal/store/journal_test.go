package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/journal"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
)

// recorded returns the events as "kind: detail".
func recorded(t *testing.T, s *store.Store, vm string) (lines []string) {
	t.Helper()
	err := s.Journal().Each(t.Context(), journal.Query{VM: vm}, func(e journal.Event) error {
		line := string(e.Kind)
		if e.Detail != "" {
			line += ": " + e.Detail
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func TestEachChangeHasItsEvent(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	ctx := progress.WithOperation(t.Context(), "0123456789ab")
	vm := sample("a")
	if err := s.Insert(ctx, vm); err != nil {
		t.Fatal(err)
	}
	for _, c := range []store.Change{
		{To: microvm.Stopped},
		{To: microvm.Starting},
		{To: microvm.Failed, Cause: "no luck"},
		{To: microvm.Starting},
		{To: microvm.Running, BootID: "b"},
		{To: microvm.Paused},
		{To: microvm.Running},
		{Event: journal.Adopted, Cause: "it was there"},
		{To: microvm.Stopping},
		{To: microvm.Stopped, Cause: "told to"},
		{To: microvm.Deleting},
	} {
		if err := s.SetState(ctx, vm.ID, c); err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
	}
	// What is refused, and what there is no VM for, leaves no trace.
	if err := s.SetState(ctx, vm.ID, store.Change{To: microvm.Running}); !fault.Is(err, fault.Precondition) {
		t.Errorf("a VM on its way out runs: %v", err)
	}
	if err := s.SetState(ctx, microvm.NewID(), store.Change{Event: journal.Adopted}); !fault.Is(err, fault.NotFound) {
		t.Errorf("no VM: %v", err)
	}
	for range 2 { // the second time it is not there
		if err := s.Remove(ctx, vm.ID); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"created", "failed: no luck", "started", "paused", "resumed", "adopted: it was there", "stopped: told to", "deleted",
	}
	if got := recorded(t, s, string(vm.ID)); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
	var last int64
	err := s.Journal().Each(ctx, journal.Query{VM: "a"}, func(e journal.Event) error {
		if last++; e.Sequence != last || e.Operation != "0123456789ab" || e.VM != vm.ID || e.Name != "a" || e.At.IsZero() {
			t.Errorf("event %d: %+v", last, e)
		}
		return nil
	})
	if err != nil || last != int64(len(want)) {
		t.Errorf("%d events, %v", last, err)
	}
}

// TestNoEventWithoutItsChange: a transaction that fails at its commit or before leaves no event and no gap.
func TestNoEventWithoutItsChange(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	if err := s.Insert(t.Context(), sample("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(t.Context(), sample("a")); !fault.Is(err, fault.Exists) {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Insert(gone, sample("b")); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := s.Insert(t.Context(), sample("c")); err != nil {
		t.Fatal(err)
	}
	var seen []string
	_ = s.Journal().Each(t.Context(), journal.Query{}, func(e journal.Event) error {
		seen = append(seen, e.Name)
		if int(e.Sequence) != len(seen) {
			t.Errorf("event %d has the number %d", len(seen), e.Sequence)
		}
		return nil
	})
	if !slices.Equal(seen, []string{"a", "c"}) {
		t.Errorf("events of %q", seen)
	}
}

// TestMigrationFromVersion1 opens a database of the first banger.
func TestMigrationFromVersion1(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "banger.db")
	schema, err := os.ReadFile("migrations/0001_vms.sql")
	if err != nil {
		t.Fatal(err)
	}
	old, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		string(schema),
		`INSERT INTO vms VALUES ('0123456789ab', 'box', '{"VCPUs": 2}', 'sha256:1', 'running', '', 0, 'boot', 1, 2)`,
		`PRAGMA user_version = 1`,
	} {
		if _, err := old.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}

	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // test
	vm, err := s.Get(t.Context(), "0123456789ab")
	if err != nil || vm.Name != "box" || vm.Spec.VCPUs != 2 || vm.State != microvm.Running || vm.BootID != "boot" {
		t.Errorf("the VM after the migration: %+v, %v", vm, err)
	}
	if err := s.SetState(t.Context(), vm.ID, store.Change{To: microvm.Stopped, Cause: "c"}); err != nil {
		t.Fatal(err)
	}
	if got := recorded(t, s, "box"); !slices.Equal(got, []string{"stopped: c"}) {
		t.Errorf("recorded %q", got)
	}

	// The copy is the database as it was.
	kept, err := sql.Open("sqlite", "file:"+path+".v1.bak?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close() //nolint:errcheck // test
	var version int
	var state, tables string
	if err := errors.Join(
		kept.QueryRowContext(t.Context(), `PRAGMA user_version`).Scan(&version),
		kept.QueryRowContext(t.Context(), `SELECT state FROM vms WHERE name = 'box'`).Scan(&state),
		kept.QueryRowContext(t.Context(), `SELECT group_concat(name) FROM sqlite_schema WHERE type = 'table'`).Scan(&tables),
	); err != nil || version != 1 || state != "running" || strings.Contains(tables, "events") {
		t.Errorf("the copy has version %d, state %q, tables %q: %v", version, state, tables, err)
	}
}
