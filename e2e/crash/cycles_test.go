//go:build vm

package crash

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to write the database of a newer banger
)

// TestCycles runs many VMs one after the other through one daemon, which must use no more at the end than at the start.
func TestCycles(t *testing.T) {
	t.Parallel()
	const warm = 5
	cycles := 40
	if soak() {
		cycles = 500
	}
	b := newBed(t)
	b.serve()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(cycles)*5*time.Second)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{rc}
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
		t.Errorf("the daemon used %+v after %d VMs and uses %+v after %d", first, warm+1, end, cycles)
	}
	all, busy := b.goroutines()
	if len(busy) > 0 {
		t.Errorf("goroutines without a VM:\n%s", strings.Join(busy, "\n\n"))
	}
	t.Logf("%d cycles in %s; the daemon used %+v, then %+v; %d goroutines at the end", cycles, took.Round(time.Millisecond), first, end, all)
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
