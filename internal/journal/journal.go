// Package journal keeps what happened to VMs: an append-only sequence of events in the database that the VMs are in, so
// that an event and the change that it tells of are committed together or not at all. It owns the reading, the bound on
// the number of events and the waking of those who follow. It does not decide what is an event, and the schema belongs to
// package store.
//
// Sequence numbers grow by one with each event and are never used twice. Events outlive their VMs and the daemon; the
// oldest are dropped when there are more than [Keep].
//
// A Journal may be used from many goroutines. It has none of its own. Its mutex guards the channel that wakes followers
// and is never held over I/O. No transaction is open while a reader is given an event, so that a slow one holds up nobody.
package journal

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// Kind says what happened.
type Kind string

// The kinds.
const (
	Created   Kind = "created" // the VM is recorded; its disks are being made
	Started   Kind = "started"
	Stopped   Kind = "stopped"
	Failed    Kind = "failed" // a start failed
	Paused    Kind = "paused"
	Suspended Kind = "suspended"
	Resumed   Kind = "resumed"
	Changed   Kind = "changed" // what was asked of it is different now
	Adopted   Kind = "adopted" // a new daemon has taken the running VM over
	Deleted   Kind = "deleted"
)

// Event is one line of the journal.
type Event struct {
	Sequence  int64
	At        time.Time
	Kind      Kind
	VM        microvm.ID
	Name      string // of the VM
	Detail    string // the cause, for people; may be empty
	Operation string // id of the operation that did it; empty if it happened by itself
}

// Bounds.
const (
	// Keep is how many of the newest events are kept at least.
	Keep = 100_000
	// pruneEvery is after how many events the oldest are dropped, so that it costs next to nothing.
	pruneEvery = 1000
	// pageSize is how many events are read at once.
	pageSize = 500
	// maxNamed is how many VMs an error names that tells of an ambiguous id.
	maxNamed = 5
)

// Journal reads and writes the table of events.
type Journal struct {
	db *sql.DB

	mu    sync.Mutex
	added chan struct{} // closed and replaced when events have been committed
}

// New returns the journal of a database.
func New(db *sql.DB) *Journal { return &Journal{db: db, added: make(chan struct{})} }

// Append writes an event, whose sequence number it ignores, in a transaction of the caller's. Call Committed when that has
// been committed.
func (*Journal) Append(ctx context.Context, tx *sql.Tx, e Event) error {
	res, err := tx.ExecContext(ctx,
		`INSERT INTO events (at, kind, vm_id, vm_name, detail, operation_id) VALUES (?, ?, ?, ?, ?, ?)`,
		e.At.UnixNano(), e.Kind, e.VM, e.Name, e.Detail, e.Operation)
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	seq, err := res.LastInsertId()
	if err != nil {
		return fmt.Errorf("number event: %w", err)
	}
	if seq%pruneEvery != 0 {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM events WHERE sequence <= ?`, seq-Keep); err != nil {
		return fmt.Errorf("drop old events: %w", err)
	}
	return nil
}

// Committed wakes those who follow.
func (j *Journal) Committed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.added)
	j.added = make(chan struct{})
}

func (j *Journal) next() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.added
}

// Query says which events are asked for.
type Query struct {
	After  int64  // only those with a greater sequence number
	VM     string // only those of the VMs with this name or id, or the beginning of the id of one; empty: of all
	Follow bool   // go on with what comes
}

// Each calls fn for each event in order. With Follow it returns only when the context ends, with its cause, or fn fails,
// with fn's error. The beginning of several ids is fault.Invalid; what means no VM may be the name of one to come.
func (j *Journal) Each(ctx context.Context, q Query, fn func(Event) error) error {
	vm, err := j.resolve(ctx, q.VM)
	if err != nil {
		return err
	}
	q.VM = vm
	for {
		added := j.next() // before the reading, so that nothing is missed between the two
		page, err := j.page(ctx, q)
		if err != nil {
			return err
		}
		for _, e := range page {
			if err := fn(e); err != nil {
				return err
			}
			q.After = e.Sequence
		}
		switch {
		case len(page) == pageSize:
			continue
		case !q.Follow:
			return nil
		}
		select {
		case <-added:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// resolve returns the whole id for the beginning of one, and any other reference as it is. VMs that are gone count as long
// as the journal knows them.
func (j *Journal) resolve(ctx context.Context, ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	rows, err := j.db.QueryContext(ctx,
		`SELECT vm_id, max(vm_name), max(vm_id = ?1 OR vm_name = ?1) AS exact FROM events
		 WHERE substr(vm_id, 1, length(?1)) = ?1 OR vm_name = ?1 GROUP BY vm_id ORDER BY exact DESC, vm_id LIMIT ?2`,
		ref, maxNamed)
	if err != nil {
		return "", readError(ctx, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var ids, found []string
	for rows.Next() {
		var id, name string
		var exact bool
		if err := rows.Scan(&id, &name, &exact); err != nil {
			return "", readError(ctx, err)
		}
		if exact {
			return ref, nil
		}
		ids, found = append(ids, id), append(found, id+" ("+name+")")
	}
	if err := rows.Err(); err != nil {
		return "", readError(ctx, err)
	}
	switch len(ids) {
	case 0:
		return ref, nil
	case 1:
		return ids[0], nil
	}
	return "", fault.New(fault.Invalid, "%q is the beginning of more than one id: %s", ref, strings.Join(found, ", ")).
		WithHint("write more of the id, or the name")
}

// page reads the next events, at most pageSize.
func (j *Journal) page(ctx context.Context, q Query) ([]Event, error) {
	rows, err := j.db.QueryContext(ctx,
		`SELECT sequence, at, kind, vm_id, vm_name, detail, operation_id FROM events
		 WHERE sequence > ?1 AND (?2 = '' OR vm_id = ?2 OR vm_name = ?2) ORDER BY sequence LIMIT ?3`, q.After, q.VM, pageSize)
	if err != nil {
		return nil, readError(ctx, err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var page []Event
	for rows.Next() {
		var e Event
		var at int64
		if err := rows.Scan(&e.Sequence, &at, &e.Kind, &e.VM, &e.Name, &e.Detail, &e.Operation); err != nil {
			return nil, readError(ctx, err)
		}
		e.At = time.Unix(0, at).UTC()
		page = append(page, e)
	}
	if err := rows.Err(); err != nil {
		return nil, readError(ctx, err)
	}
	return page, nil
}

// readError prefers the reason for which a reader was told to end to what the database made of it.
func readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("read journal: %w", err)
}
