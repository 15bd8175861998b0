package store_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"banger/internal/microvm"
	"banger/internal/store"
)

// firstSpec is a specification as the first version of the schema was filled.
const firstSpec = `{"Image":"debian-bookworm","Kernel":"debian","VCPUs":2,"Memory":536870912,"DiskSize":8589934592,` +
	`"Init":"auto","Net":"user","Backend":"auto","Env":{"A":"b"},"Labels":{"team":"x"},"TTL":3600000000000}`

// older makes a database of an older version, by the scripts up to that version, with one VM in it.
func older(t *testing.T, path string, scripts []string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the statements tell
	for i, name := range scripts {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), string(text)+fmt.Sprintf("; PRAGMA user_version = %d", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = db.ExecContext(t.Context(), `INSERT INTO vms (id, name, spec, image_digest, state, cause, boot_id, created_at, changed_at)
		VALUES ('0123456789ab', 'old', ?, 'sha256:01', 'stopped', 'killed', '', 1700000000000000000, 1700000000000000001)`, firstSpec)
	if err != nil {
		t.Fatal(err)
	}
}

// TestEveryOlderVersion migrates databases of every version that ever was, with a copy kept, and uses what is in them.
func TestEveryOlderVersion(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("migrations/*.sql")
	if err != nil || len(scripts) < 2 {
		t.Fatalf("%q, %v", scripts, err)
	}
	slices.Sort(scripts)
	for n := 1; n < len(scripts); n++ {
		t.Run(fmt.Sprintf("from %d", n), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "banger.db")
			older(t, path, scripts[:n])
			kept := fmt.Sprintf("%s.v%d.bak", path, n)
			// What a process left that was killed while it copied is of no importance.
			for _, path := range []string{kept + ".tmp", kept + ".tmp-journal"} {
				if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := store.Open(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close() //nolint:errcheck // test
			mustHaveOld(t, s)
			if err := s.SetState(t.Context(), "0123456789ab", store.Change{To: microvm.Starting}); err != nil {
				t.Error(err)
			}
			if err := s.Remove(t.Context(), "0123456789ab"); err != nil {
				t.Error(err)
			}
			if entries, _ := filepath.Glob(path + "*.tmp*"); len(entries) > 0 {
				t.Errorf("left: %q", entries)
			}
			mustBeVersion(t, kept, n)
			// The copy is a way back: it is a whole database, which can be migrated again.
			again, err := store.Open(t.Context(), kept)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close() //nolint:errcheck // test
			mustHaveOld(t, again)
		})
	}
}

func mustHaveOld(t *testing.T, s *store.Store) {
	t.Helper()
	vms, err := s.List(t.Context())
	if err != nil || len(vms) != 1 {
		t.Fatalf("%+v, %v", vms, err)
	}
	vm := vms[0]
	if vm.ID != "0123456789ab" || vm.Name != "old" || vm.State != microvm.Stopped || vm.Cause != "killed" || vm.ImageDigest != "sha256:01" ||
		vm.Spec.Memory != 512<<20 || vm.Spec.Labels["team"] != "x" || vm.Spec.Env["A"] != "b" || vm.CreatedAt.UnixNano() != 1700000000000000000 {
		t.Errorf("%+v", vm)
	}
}

func mustBeVersion(t *testing.T, path string, want int) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // read only
	var version, rows int
	if err := db.QueryRowContext(t.Context(), `PRAGMA user_version`).Scan(&version); err != nil || version != want {
		t.Errorf("%s has version %d, %v; want %d", path, version, err, want)
	}
	if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM vms`).Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%s holds %d VMs, %v", path, rows, err)
	}
}

// TestMigrationThatCannotKeepACopy changes nothing.
func TestMigrationThatCannotKeepACopy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "banger.db")
	older(t, path, []string{"migrations/0001_vms.sql"})
	// Nothing can be renamed to a directory that is not empty.
	if err := os.MkdirAll(path+".v1.bak/x", 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := store.Open(t.Context(), path); err == nil {
		_ = s.Close()
		t.Fatal("it was migrated without a copy")
	}
	mustBeVersion(t, path, 1)
	if err := os.RemoveAll(path + ".v1.bak"); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // test
	mustHaveOld(t, s)
}
