package journal_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver

	"banger/internal/fault"
	"banger/internal/journal"
	"banger/internal/microvm"
)

// bed is a journal in a database that has nothing else.
type bed struct {
	*journal.Journal

	t  *testing.T
	db *sql.DB
}

func newBed(t *testing.T) *bed {
	t.Helper()
	schema, err := os.ReadFile("../store/migrations/0002_events.sql")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := db.ExecContext(t.Context(), string(schema)); err != nil {
		t.Fatal(err)
	}
	return &bed{Journal: journal.New(db), t: t, db: db}
}

// write appends n events of a VM in one transaction.
func (b *bed) write(n int, name string) {
	b.t.Helper()
	tx, err := b.db.BeginTx(context.Background(), nil)
	if err != nil {
		b.t.Error(err)
		return
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	for range n {
		e := journal.Event{At: time.Now(), Kind: journal.Started, VM: microvm.ID("id-" + name), Name: name}
		if err := b.Append(context.Background(), tx, e); err != nil {
			b.t.Error(err)
			return
		}
	}
	if err := tx.Commit(); err != nil {
		b.t.Error(err)
	}
	b.Committed()
}

func (b *bed) read(q journal.Query) (numbers []int64) {
	b.t.Helper()
	err := b.Each(b.t.Context(), q, func(e journal.Event) error {
		numbers = append(numbers, e.Sequence)
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
	return numbers
}

func TestQueries(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, name := range []string{"a", "b", "a", "c", "alpha", "id-alpha", "beta"} {
		b.write(1, name)
	}
	for name, c := range map[string]struct {
		q    journal.Query
		want []int64
	}{
		"all":             {journal.Query{}, []int64{1, 2, 3, 4, 5, 6, 7}},
		"after":           {journal.Query{After: 5}, []int64{6, 7}},
		"after the last":  {journal.Query{After: 7}, nil},
		"after what is":   {journal.Query{After: 99}, nil},
		"name":            {journal.Query{VM: "a"}, []int64{1, 3}},
		"id":              {journal.Query{VM: "id-b"}, []int64{2}},
		"name and after":  {journal.Query{VM: "a", After: 1}, []int64{3}},
		"beginning of id": {journal.Query{VM: "id-be"}, []int64{7}},
		"name and id":     {journal.Query{VM: "id-alpha"}, []int64{5, 6}}, // as a name and as an id, not as a beginning
		"no such VM":      {journal.Query{VM: "id-x"}, nil},
		"not a statement": {journal.Query{VM: "' OR 1=1 --"}, nil},
	} {
		if got := b.read(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	err := b.Each(t.Context(), journal.Query{VM: "id-"}, func(journal.Event) error { return errors.New("an event") })
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "id-a (a), id-alpha (alpha)") || fault.HintOf(err) == "" {
		t.Errorf("the beginning of several ids: %v", err)
	}
	stop := errors.New("enough")
	if err := b.Each(t.Context(), journal.Query{Follow: true}, func(journal.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the reader's error came as %v", err)
	}
}

// TestFollow has several readers follow several writers: each sees each event once and in order, and is woken.
func TestFollow(t *testing.T) {
	t.Parallel()
	const writers, each = 4, 150 // more than a page in all
	b := newBed(t)
	b.write(3, "before")
	var readers sync.WaitGroup
	for i := range 3 {
		readers.Go(func() {
			ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, errors.New("it was not woken"))
			defer cancel()
			enough := errors.New("enough")
			next := int64(1)
			err := b.Each(ctx, journal.Query{Follow: true}, func(e journal.Event) error {
				if e.Sequence != next {
					return errors.New("event " + strconv.FormatInt(e.Sequence, 10) + " in place of " + strconv.FormatInt(next, 10))
				}
				if next++; next > writers*each+3 {
					return enough
				}
				if i == 0 && next%50 == 0 {
					time.Sleep(time.Millisecond) // a slow one
				}
				return nil
			})
			if !errors.Is(err, enough) {
				t.Errorf("reader %d, at %d: %v", i, next, err)
			}
		})
	}
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for range each / 10 {
				b.write(10, "a")
			}
		})
	}
	writing.Wait()
	readers.Wait()
}

func TestFollowEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	why := errors.New("the reader left")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Each(ctx, journal.Query{Follow: true}, func(journal.Event) error { return nil }) }()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("it ended with %v", err)
	}
}

// TestTheOldestAreDropped: the table is bounded, and a number is never given twice, not even that of a dropped event.
func TestTheOldestAreDropped(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if _, err := b.db.ExecContext(t.Context(), `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?)
		INSERT INTO events SELECT i, 0, '', '', '', '', '' FROM n`, journal.Keep+998); err != nil {
		t.Fatal(err)
	}
	has := func(count, first, last int64) {
		t.Helper()
		var n, low, high int64
		err := b.db.QueryRowContext(t.Context(), `SELECT count(*), min(sequence), max(sequence) FROM events`).Scan(&n, &low, &high)
		if err != nil || n != count || low != first || high != last {
			t.Errorf("%d events, from %d to %d, %v; want %d, from %d to %d", n, low, high, err, count, first, last)
		}
	}
	b.write(1, "a")
	has(journal.Keep+999, 1, journal.Keep+999)
	b.write(1, "a")
	has(journal.Keep, 1001, journal.Keep+1000)
	if _, err := b.db.ExecContext(t.Context(), `DELETE FROM events`); err != nil {
		t.Fatal(err)
	}
	b.write(1, "a")
	if got := b.read(journal.Query{}); len(got) != 1 || got[0] != journal.Keep+1001 {
		t.Errorf("after the loss of all: %v", got)
	}
}
