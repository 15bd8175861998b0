// Package depot makes things in a directory at most once, however many goroutines and processes ask for them together.
//
// It owns, below its directory, ".locks" (one lock file per key; only those of Scratch are ever removed) and ".work" (one
// working directory per key). A working directory belongs to whoever holds its key's lock, so that one found by the next
// holder is the rest of a process that died, and is removed. It doesn't own what is made or where that is published.
//
// Locks: Depot.mu guards the table of flights and who waits for each; it is never held over I/O. flight.mu is held while
// updates are passed to the waiters. Between processes flock(2) serialises per key.
//
// Goroutines: one per flight. The last waiter to leave cancels it and waits for its end, so none outlives its callers.
package depot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/progress"
)

// lockPoll is how often a lock held by another process is tried again.
const lockPoll = 50 * time.Millisecond

// Depot is a directory in which things are made once.
type Depot struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	flights map[string]*flight
}

// New returns a depot over a directory, which need not exist yet.
func New(dir string, log *slog.Logger) *Depot {
	return &Depot{dir: dir, log: log, flights: map[string]*flight{}}
}

// Job says how a thing is made.
type Job struct {
	Key string // names the thing: a-z, 0-9, - and .; not beginning with a dot
	// Have reports whether the thing is there. It is asked with the lock held: another process may have made it meanwhile.
	Have func() (bool, error)
	// Make makes and publishes the thing. work is an empty directory on the same filesystem as the depot; it is removed
	// afterwards.
	Make func(ctx context.Context, work string, sink progress.Sink) error
}

// Do makes the thing unless it is there, or waits for the caller that is already making it; all callers see the same
// progress and get the same error. A caller whose context ends stops waiting; the work goes on as long as anyone waits.
func (d *Depot) Do(ctx context.Context, sink progress.Sink, job Job) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		f, ticket := d.join(ctx, sink, job)
		select {
		case <-f.done:
		case <-ctx.Done():
			if d.leave(f, ticket) {
				f.cancel()
				<-f.done
			}
			return context.Cause(ctx)
		}
		if ticket >= 0 {
			return f.err
		}
		// The flight had been abandoned by all its waiters before this one came: make another.
	}
}

// join enters the flight of the key, starting it if there is none. A negative ticket means it is being abandoned.
func (d *Depot) join(ctx context.Context, sink progress.Sink, job Job) (*flight, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.flights[job.Key]
	if f != nil && f.waiting == 0 {
		return f, -1
	}
	if f != nil {
		f.waiting++
		return f, f.add(sink)
	}
	// The work is not the first caller's alone: it ends when nobody waits any more.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f = &flight{cancel: cancel, done: make(chan struct{}), sinks: map[int]progress.Sink{}, waiting: 1}
	d.flights[job.Key] = f
	ticket := f.add(sink) // before the work begins: it hears of all
	go func() {
		defer cancel()
		f.err = d.Exclusive(work, job.Key, f.send, func(dir string) error {
			if have, err := job.Have(); have || err != nil {
				return err
			}
			return job.Make(work, dir, f.send)
		})
		d.mu.Lock()
		delete(d.flights, job.Key)
		d.mu.Unlock()
		close(f.done)
	}()
	return f, ticket
}

// leave reports whether nobody waits for the flight any more.
func (d *Depot) leave(f *flight, ticket int) bool {
	f.drop(ticket)
	d.mu.Lock()
	defer d.mu.Unlock()
	f.waiting--
	return f.waiting == 0
}

// Exclusive runs fn while no other process or goroutine works on the key. work is an empty directory, removed
// afterwards. While the lock is held elsewhere the sink hears of it.
func (d *Depot) Exclusive(ctx context.Context, key string, sink progress.Sink, fn func(work string) error) error {
	if key == "" || key[0] == '.' || filepath.Base(key) != key {
		return fault.New(fault.Invalid, "bad key %q", key)
	}
	unlock, err := d.lock(ctx, key, sink)
	if err != nil {
		return err
	}
	defer unlock()
	work := filepath.Join(d.dir, ".work", key)
	if err := Remove(work); err != nil {
		return fmt.Errorf("remove what an earlier attempt left: %w", err)
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	err = fn(work)
	if rerr := Remove(work); rerr != nil {
		d.log.Warn("remove working directory", "path", work, "err", rerr)
	}
	return err
}

// lock takes the key's file lock. It belongs to the open file, so goroutines exclude each other too, and the kernel
// drops it when a process dies.
func (d *Depot) lock(ctx context.Context, key string, sink progress.Sink) (unlock func(), err error) {
	dir := filepath.Join(d.dir, ".locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make lock directory: %w", err)
	}
	open := func() (*os.File, error) {
		return os.OpenFile(filepath.Join(dir, key), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	}
	f, err := open()
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	stage, told := "wait for "+key, false
	defer func() {
		if told {
			sink.Send(progress.Update{Stage: stage, Ended: true})
		}
	}()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && linked(f) {
			return func() { _ = f.Close() }, nil
		}
		if err == nil { // a sweep removed it between the two calls
			_ = f.Close()
			if f, err = open(); err != nil {
				return nil, fmt.Errorf("open lock: %w", err)
			}
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", key, err)
		}
		if !told {
			told = true
			sink.Send(progress.Update{Stage: stage, Detail: "another process is working on it"})
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// linked reports whether a file still has a name.
func linked(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink > 0
}

// Sweep removes working directories that nobody uses: what processes left that were killed. It never waits for a lock.
func (d *Depot) Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(d.dir, ".work"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweep: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		now, cancel := context.WithCancel(ctx)
		cancel() // a lock that is held is not waited for
		unlock, err := d.lock(now, e.Name(), nil)
		if err != nil {
			continue
		}
		path := filepath.Join(d.dir, ".work", e.Name())
		if err := Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("sweep: %w", err))
		} else {
			d.log.Info("removed an unfinished build", "path", path)
		}
		unlock()
	}
	return errors.Join(append(errs, d.sweepScratchLocks(ctx))...)
}

// Settled waits until nobody works on the key. For a key that nobody ever worked on it does nothing.
func (d *Depot) Settled(ctx context.Context, key string) error {
	if _, err := os.Lstat(filepath.Join(d.dir, ".locks", key)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := d.lock(ctx, key, nil)
	if err == nil {
		unlock()
	}
	return err
}
