package depot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Abandoned returns the working directories that nobody uses: what Sweep would remove. It changes nothing and waits for
// no lock.
func (d *Depot) Abandoned(ctx context.Context) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.dir, ".work"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for unfinished work: %w", err)
	}
	var found []string
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		held, err := d.locked(e.Name())
		if err != nil {
			return nil, fmt.Errorf("look for unfinished work: %w", err)
		}
		path := filepath.Join(d.dir, ".work", e.Name())
		if _, err := os.Lstat(path); err == nil && !held { // what has ended meanwhile is no more there
			found = append(found, path)
		}
	}
	return found, nil
}

// locked reports whether somebody holds the lock of a key.
func (d *Depot) locked(key string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, ".locks", key), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read only
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err == nil { // given back now, and not when the last copy of the descriptor is closed
		err = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	return false, err
}
