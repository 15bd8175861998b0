//go:build vm

package crash

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to write the database of a newer banger
)

// TestCycles runs many VMs one after the other through one daemon, which must use no more at the end than at the start.
func TestCycles(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if soak() {
		b.cycle(500, 5*time.Second, false)
	} else {
		b.cycle(40, 5*time.Second, false)
	}
}

// TestRealCycles is TestCycles with real VMs.
func TestRealCycles(t *testing.T) {
	seed := os.Getenv("BANGER_E2E_SEED")
	switch {
	case !soak():
		t.Skip("takes minutes: make soak")
	case seed == "":
		t.Skip("BANGER_E2E_SEED names no directory with images and kernels")
	}
	b := newBed(t)
	for _, part := range []string{"state/banger/images", "state/banger/kernels", "cache/banger"} {
		b.plant(filepath.Join(seed, part), filepath.Join(b.home, part))
	}
	b.cycle(30, time.Minute, true)
}

// plant links the files of a directory into another: they never change.
func (b *bed) plant(from, to string) {
	b.Helper()
	b.must(filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return os.Link(path, filepath.Join(to, rel))
	}))
}

// cycle creates, starts, uses and deletes so many VMs, each of which may take so long.
func (b *bed) cycle(cycles int, each time.Duration, real bool) {
	b.Helper()
	const warm = 5
	b.serve()
	ctx, cancel := context.WithTimeout(b.Context(), time.Duration(cycles)*each)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{Client: rc, real: real}
	var first usage
	began := time.Now()
	for i := range cycles {
		net := []string{"none", "user"}[i%2]
		vm := fmt.Sprintf("vm%d", i)
		_, err := c.create(ctx, vm, net, false)
		b.must(err)
		_, err = c.start(ctx, vm)
		b.must(err)
		b.must(c.exec(ctx, vm))
		b.must(c.delete(ctx, vm, true))
		if i == warm {
			b.empty(ctx, c)
			first = usageOf(b.pid())
		}
	}
	took := time.Since(began)
	b.empty(ctx, c)
	end := settled(b.pid(), first.fds)
	// A thread is kept for whatever blocked at the same time as others did; they do not grow with the number of VMs.
	if end.fds > first.fds || end.threads > first.threads+8 {
		b.Errorf("the daemon used %+v after %d VMs and uses %+v after %d", first, warm+1, end, cycles)
	}
	all, busy := b.goroutines()
	if all == 0 {
		b.Errorf("the daemon did not say what its goroutines are:\n%s", b.lastLog())
	}
	if len(busy) > 0 {
		b.Errorf("goroutines without a VM:\n%s", strings.Join(busy, "\n\n"))
	}
	b.Logf("%d cycles in %s; the daemon used %+v, then %+v; %d goroutines at the end", cycles, took.Round(time.Millisecond), first, end, all)
}

// TestNewerDatabase starts a daemon on a database that a newer banger wrote.
func TestNewerDatabase(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.serve()
	b.kill(9)
	path := b.state("banger.db")
	db, err := sql.Open("sqlite", path)
	b.must(err)
	_, err = db.Exec(`PRAGMA user_version = 1000`)
	b.must(err)
	_, err = db.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	b.must(err)
	b.must(db.Close())
	before, err := os.ReadFile(path)
	b.must(err)
	err = b.tryServe()
	if err == nil {
		t.Fatal("the daemon started")
	}
	b.awaitEnd()
	for _, words := range []string{"has version 1000", "knows versions up to", "use the newer banger"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("the message lacks %q: %v", words, err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the database was touched (%v)", err)
	}
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		t.Error("a write-ahead log was begun")
	}
}
