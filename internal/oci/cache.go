package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Folders of the cache. A file in blobs is complete; it got there by a rename from partial, where whoever writes it holds
// its lock. Files in spool have no name but for a moment.
const (
	blobs   = "blobs"
	partial = "partial"
	spool   = "spool"
)

// lockPoll is how often a lock is tried again that somebody else who fetches the same layer holds.
const lockPoll = 50 * time.Millisecond

// cache keeps layers by digest. Anybody may delete any of its files at any time: who reads one has it open.
type cache struct{ dir string }

func (c *Client) cache() *cache { return &cache{dir: c.opts.CacheDir} }

// file returns the path of a layer in a folder.
func (c *cache) file(folder string, l Layer) string {
	return filepath.Join(c.dir, folder, strings.TrimPrefix(l.Digest, "sha256:"))
}

// get returns the open file of a layer, complete and checked. If it isn't there, download completes it: f has the first
// have bytes already, perhaps.
func (c *cache) get(ctx context.Context, l Layer, download func(ctx context.Context, f *os.File, have int64) error) (*os.File, error) {
	if f, err := c.lookup(ctx, l); f != nil || err != nil {
		return f, err
	}
	for _, folder := range []string{blobs, partial} {
		if err := os.MkdirAll(filepath.Join(c.dir, folder), 0o700); err != nil {
			return nil, full(err)
		}
	}
	f, err := lock(ctx, c.file(partial, l))
	if err != nil {
		return nil, err
	}
	if done, err := c.lookup(ctx, l); done != nil || err != nil { // somebody else has fetched it meanwhile
		return done, errors.Join(err, os.Remove(f.Name()), f.Close())
	}
	info, err := f.Stat()
	if err == nil {
		err = download(ctx, f, info.Size())
	}
	if err == nil {
		err = full(os.Rename(f.Name(), c.file(blobs, l)))
	}
	if err != nil {
		if st, serr := f.Stat(); serr == nil && st.Size() == 0 {
			err = errors.Join(err, os.Remove(f.Name()))
		}
		return nil, errors.Join(err, f.Close())
	}
	// Nobody waits for the name that the file has lost, but they may wait for the file.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		return nil, errors.Join(fmt.Errorf("unlock layer: %w", err), f.Close())
	}
	return f, nil
}

// lookup returns the open file of a layer that is there, or nil. One that is damaged is removed.
func (c *cache) lookup(ctx context.Context, l Layer) (*os.File, error) {
	path := c.file(blobs, l)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.Size() == l.Size {
		h := newHash()
		if _, err := io.CopyBuffer(h, &seeker{ctx: ctx, r: io.NewSectionReader(f, 0, l.Size)}, make([]byte, 1<<20)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if sum(h) == l.Digest {
			return f, nil
		}
	}
	return nil, errors.Join(os.Remove(path), f.Close())
}

// lock opens a file, which need not exist, for whoever is alone with it.
func lock(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, full(err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(f, path) {
			return f, nil
		}
		if cerr := f.Close(); cerr != nil {
			return nil, cerr
		}
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// isAt reports whether an open file still has its name.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// temp returns a new file without a name. Its space is free again when it is closed, or its process has died.
func (c *cache) temp() (*os.File, error) {
	dir := filepath.Join(c.dir, spool)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, full(err)
	}
	f, err := os.CreateTemp(dir, "*")
	if err != nil {
		return nil, full(err)
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) { // a prune may have been quicker
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (c *Client) prune(ctx context.Context, dryRun bool) (freed int64, err error) {
	var errs []error
	for _, folder := range []string{blobs, partial, spool} {
		dir := filepath.Join(c.opts.CacheDir, folder)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return freed, context.Cause(ctx)
			}
			n, err := pruneFile(filepath.Join(dir, e.Name()), folder == partial, dryRun)
			freed += n
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return freed, fmt.Errorf("prune layers: %w", err)
	}
	return freed, nil
}

// pruneFile removes a file, if it is one, and returns the bytes that it took on the disk.
func pruneFile(path string, locked, dryRun bool) (int64, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil || !info.Mode().IsRegular() {
		return 0, err
	}
	if locked {
		f, err := os.Open(path)
		if err != nil {
			return 0, ignoreGone(err)
		}
		defer f.Close() //nolint:errcheck // read only; gives up the lock
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil || !isAt(f, path) {
			return 0, nil // it is being fetched, or has just been
		}
	}
	if !dryRun {
		if err := os.Remove(path); err != nil {
			return 0, ignoreGone(err)
		}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512, nil
	}
	return info.Size(), nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// full gives an error that comes from a full disk or quota its kind.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.New(fault.Exhausted, "no space left for layers: %w", err).WithHint("free some space and try again: what was fetched is kept")
	}
	return err
}

func newHash() hash.Hash { return sha256.New() }

func sum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
