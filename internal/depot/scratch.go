package depot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// scratchPrefix begins the keys of scratch directories. Their locks are removed, which no other key's is: nobody but the
// sweep looks for them.
const scratchPrefix = "%scratch-"

// Scratch runs fn with an empty directory of its own, removed afterwards: for work whose key is only known once it has
// begun. What a killed process leaves is removed by Sweep.
func (d *Depot) Scratch(ctx context.Context, fn func(work string) error) error {
	key := scratchPrefix + rand.Text()
	err := d.Exclusive(ctx, key, nil, fn)
	if rerr := os.Remove(filepath.Join(d.dir, ".locks", key)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		d.log.Warn("remove lock of scratch directory", "key", key, "err", rerr)
	}
	return err
}

// sweepScratchLocks removes the locks of scratch directories that are gone. One that was made a moment ago, whose
// directory comes next, is held, and stays.
func (d *Depot) sweepScratchLocks(ctx context.Context) error {
	dir := filepath.Join(d.dir, ".locks")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweep: %w", err)
	}
	now, cancel := context.WithCancel(ctx)
	cancel() // a lock that is held is not waited for
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), scratchPrefix) {
			continue
		}
		if unlock, err := d.lock(now, e.Name(), nil); err == nil {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
			unlock()
		}
	}
	return errors.Join(errs...)
}
