package depot

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestScratch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(dir, quiet())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := d.Scratch(t.Context(), func(work string) error {
				file := filepath.Join(work, "f")
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					return err
				}
				// A sweep spares what is in use.
				err := d.Sweep(t.Context())
				_, serr := os.Stat(file)
				return errors.Join(err, serr)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{".work", ".locks"} {
		if left, _ := os.ReadDir(filepath.Join(dir, sub)); len(left) != 0 {
			t.Errorf("%s: %v", sub, left)
		}
	}
}

func TestSweepTakesDeadScratch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(dir, quiet())
	hold(t, dir, scratchPrefix+"dead").Close() //nolint:errcheck // nothing to flush
	if err := os.MkdirAll(filepath.Join(dir, ".work", scratchPrefix+"dead"), 0o700); err != nil {
		t.Fatal(err)
	}
	alive := hold(t, dir, scratchPrefix+"alive")
	defer alive.Close() //nolint:errcheck // nothing to flush
	left, err := d.Abandoned(t.Context())
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != scratchPrefix+"dead" {
		t.Errorf("unfinished: %v, %v", left, err)
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	locks, _ := os.ReadDir(filepath.Join(dir, ".locks"))
	if len(locks) != 1 || locks[0].Name() != scratchPrefix+"alive" {
		t.Errorf("locks left: %v", locks)
	}
	if _, err := os.Stat(filepath.Join(dir, ".work", scratchPrefix+"dead")); !os.IsNotExist(err) {
		t.Error("the directory of a dead process is still there")
	}
}
