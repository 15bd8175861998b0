package depot

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestAbandoned(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(dir, quiet())
	if got, err := d.Abandoned(t.Context()); err != nil || len(got) > 0 {
		t.Errorf("in an empty depot: %q, %v", got, err)
	}
	for _, name := range []string{"dead", "busy", "unlocked"} {
		if err := os.MkdirAll(filepath.Join(dir, ".work", name, "half"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	defer hold(t, dir, "busy").Close() //nolint:errcheck // nothing to flush
	if err := hold(t, dir, "dead").Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, ".work", "dead"), filepath.Join(dir, ".work", "unlocked")}
	for range 2 { // looking changes nothing
		if got, err := d.Abandoned(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Abandoned(t.Context()); err != nil || len(got) > 0 {
		t.Errorf("after a sweep: %q, %v", got, err)
	}
}
