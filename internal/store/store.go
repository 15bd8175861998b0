// Package store keeps what must outlive every process: the intent of the user, as rows in one SQLite database. It owns
// the schema, its migrations and the rule that a state may only be followed by the states that package microvm allows.
// It does not keep observations (process ids, sockets): those are found again in the VM's own directories.
//
// Each change of a VM writes its event to the journal in the same transaction; what is an event is decided here.
//
// A Store may be used from many goroutines; SQLite's WAL mode lets readers go on beside the one writer. A commit
// survives the death of every process of the host. After a loss of power the last commits may be gone, but the database
// is whole (synchronous=NORMAL, https://www.sqlite.org/pragma.html#pragma_synchronous).
package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"banger/internal/fault"
	"banger/internal/journal"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// Store is an open database.
type Store struct {
	db      *sql.DB
	journal *journal.Journal
	now     func() time.Time
	listing listing
}

// Open opens the database at path, makes it if it does not exist, and brings an older one up to date, with a copy of it
// kept beside it. A database of a newer banger is refused and not touched.
func Open(ctx context.Context, path string) (*Store, error) {
	if err := migrate(ctx, path); err != nil {
		return nil, err
	}
	db, err := open(path, "rwc")
	if err != nil {
		return nil, err
	}
	return &Store{db: db, journal: journal.New(db), now: time.Now, listing: newListing()}, nil
}

// Journal returns the journal of what happened to the VMs.
func (s *Store) Journal() *journal.Journal { return s.journal }

// open opens the file with all pragmas in the DSN, so that every connection of the pool has them.
func open(path, mode string) (*sql.DB, error) {
	q := url.Values{}
	q.Set("mode", mode)
	q.Set("_txlock", "immediate")
	q.Add("_pragma", "busy_timeout(10000)")
	q.Add("_pragma", "foreign_keys(1)")
	if mode != "ro" {
		q.Add("_pragma", "journal_mode(WAL)")
		q.Add("_pragma", "synchronous(NORMAL)")
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.SetMaxOpenConns(5) // one of them is the listing's
	return db, nil
}

// Close closes the database.
func (s *Store) Close() error {
	s.listing.close()
	return s.db.Close()
}

// Insert records a new VM. It sets CreatedAt and ChangedAt. A name that is taken is fault.Exists. A VM with the id of a spare
// takes its place; fault.Precondition: whose id it has is none.
func (s *Store) Insert(ctx context.Context, vm *microvm.VM) error {
	spec, err := json.Marshal(vm.Spec)
	if err != nil {
		return fmt.Errorf("encode spec of VM %s: %w", vm.ID, err)
	}
	now := s.now().UTC()
	err = s.change(ctx, func(tx *sql.Tx) (journal.Event, error) {
		res, err := tx.ExecContext(ctx,
			`INSERT INTO vms (id, name, spec, image_digest, state, cause, ephemeral, created_at, changed_at)
			 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
			 ON CONFLICT (id) DO UPDATE SET name = excluded.name, spec = excluded.spec, image_digest = excluded.image_digest,
			   state = excluded.state, ephemeral = excluded.ephemeral, created_at = excluded.created_at, changed_at = excluded.changed_at
			 WHERE name LIKE '`+microvm.SparePrefix+`%' AND state = 'stopped'`,
			vm.ID, vm.Name, string(spec), vm.ImageDigest, vm.State, vm.Cause, vm.Ephemeral, now.UnixNano(), now.UnixNano())
		if err == nil {
			if n, counted := res.RowsAffected(); counted == nil && n == 0 {
				err = fault.New(fault.Precondition, "there is a VM with the id %s, and it is no spare", vm.ID)
			}
		}
		return journal.Event{At: now, Kind: journal.Created, VM: vm.ID, Name: vm.Name}, err
	})
	if se, ok := errors.AsType[*sqlite.Error](err); ok && se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return fault.New(fault.Exists, "a VM named %q exists already", vm.Name).
			WithHint("choose another --name, or delete it: banger vm delete %s", vm.Name)
	}
	if err != nil {
		return storageError("record VM "+vm.Name, err)
	}
	vm.CreatedAt, vm.ChangedAt = now, now
	return nil
}

const columns = `id, name, spec, image_digest, state, cause, ephemeral, boot_id, created_at, changed_at`

// Get returns one VM; fault.NotFound if there is none with this id.
func (s *Store) Get(ctx context.Context, id microvm.ID) (microvm.VM, error) {
	vm, err := scan(s.db.QueryRowContext(ctx, `SELECT `+columns+` FROM vms WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return microvm.VM{}, fault.New(fault.NotFound, "no VM with id %s", id).WithHint("list them: banger ps")
	}
	if err != nil {
		return microvm.VM{}, storageError("read VM "+string(id), err)
	}
	return vm, nil
}

// SetImage records which image a VM that is being created got, and what the image adds to its specification.
func (s *Store) SetImage(ctx context.Context, id microvm.ID, digest string, spec microvm.Spec) error {
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode spec of VM %s: %w", id, err)
	}
	if _, err := s.db.ExecContext(ctx, `UPDATE vms SET image_digest = ?, spec = ? WHERE id = ?`, digest, string(text), id); err != nil {
		return storageError("record image of VM "+string(id), err)
	}
	return nil
}

// UpdateSpec records what is asked of a VM from now on; detail says what is different, for people. The caller holds the
// VM's lock, so nobody else changes it meanwhile.
func (s *Store) UpdateSpec(ctx context.Context, id microvm.ID, spec microvm.Spec, detail string) error {
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode spec of VM %s: %w", id, err)
	}
	err = s.change(ctx, func(tx *sql.Tx) (journal.Event, error) {
		e := journal.Event{At: s.now().UTC(), Kind: journal.Changed, VM: id, Detail: detail}
		err := tx.QueryRowContext(ctx, `UPDATE vms SET spec = ? WHERE id = ? RETURNING name`, string(text), id).Scan(&e.Name)
		if errors.Is(err, sql.ErrNoRows) {
			return e, fault.New(fault.NotFound, "no VM with id %s", id)
		}
		return e, err
	})
	return storageError("record spec of VM "+string(id), err)
}

// Change is a change of state.
type Change struct {
	To     microvm.State // empty: it stays in the state that it is in, and only the event is recorded
	Cause  string        // why, for people
	BootID string        // with To == Running: the guest's boot id; kept while paused, forgotten otherwise
	Event  journal.Kind  // empty: the one that follows from the states, if any does
}

// SetState records a change of state, if the table of package microvm allows it: fault.Precondition if not.
func (s *Store) SetState(ctx context.Context, id microvm.ID, c Change) error {
	err := s.change(ctx, func(tx *sql.Tx) (journal.Event, error) {
		now := s.now().UTC()
		e := journal.Event{At: now, Kind: c.Event, VM: id, Detail: c.Cause}
		var from microvm.State
		var boot string
		err := tx.QueryRowContext(ctx, `SELECT name, state, boot_id FROM vms WHERE id = ?`, id).Scan(&e.Name, &from, &boot)
		if errors.Is(err, sql.ErrNoRows) {
			return e, fault.New(fault.NotFound, "no VM with id %s", id)
		}
		if err != nil || c.To == "" {
			return e, err
		}
		if !from.MayBecome(c.To) {
			return e, fault.New(fault.Precondition, "VM %s is %s and cannot become %s", id, from, c.To)
		}
		switch {
		case c.BootID != "":
			boot = c.BootID
		case !c.To.Live():
			boot = ""
		}
		if e.Kind == "" {
			e.Kind = eventOf(from, c.To)
		}
		_, err = tx.ExecContext(ctx, `UPDATE vms SET state = ?, cause = ?, boot_id = ?, changed_at = ? WHERE id = ?`,
			c.To, c.Cause, boot, now.UnixNano(), id)
		return e, err
	})
	return storageError("record state of VM "+string(id), err)
}

// eventOf returns what a change of state is in the journal; empty for one that is only an intent.
func eventOf(from, to microvm.State) journal.Kind {
	switch to {
	case microvm.Running:
		if from == microvm.Paused {
			return journal.Resumed
		}
		return journal.Started
	case microvm.Paused:
		return journal.Paused
	case microvm.Suspended:
		return journal.Suspended
	case microvm.Failed:
		return journal.Failed
	case microvm.Stopped:
		if from.HasProcess() {
			return journal.Stopped
		}
	case microvm.Creating, microvm.Starting, microvm.Stopping, microvm.Deleting:
	}
	return ""
}

// Remove forgets a VM; its events stay. Forgetting one that is not there is no error.
func (s *Store) Remove(ctx context.Context, id microvm.ID) error {
	err := s.change(ctx, func(tx *sql.Tx) (journal.Event, error) {
		e := journal.Event{At: s.now().UTC(), Kind: journal.Deleted, VM: id}
		err := tx.QueryRowContext(ctx, `DELETE FROM vms WHERE id = ? RETURNING name`, id).Scan(&e.Name)
		if errors.Is(err, sql.ErrNoRows) {
			return journal.Event{}, nil
		}
		return e, err
	})
	return storageError("remove VM "+string(id), err)
}

// change makes a change and writes its event, if it has one, in one transaction.
func (s *Store) change(ctx context.Context, do func(*sql.Tx) (journal.Event, error)) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	e, err := do(tx)
	if err != nil {
		return err
	}
	if e.Kind != "" && !(microvm.VM{Name: e.Name}).IsSpare() { // those are nobody's
		e.Operation = progress.OperationOf(ctx)
		if err := s.journal.Append(ctx, tx, e); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	s.journal.Committed()
	return nil
}

func scan(row interface{ Scan(...any) error }) (microvm.VM, error) {
	var vm microvm.VM
	var spec string
	var created, changed int64
	err := row.Scan(&vm.ID, &vm.Name, &spec, &vm.ImageDigest, &vm.State, &vm.Cause, &vm.Ephemeral, &vm.BootID,
		&created, &changed)
	if err != nil {
		return vm, err
	}
	vm.CreatedAt, vm.ChangedAt = time.Unix(0, created).UTC(), time.Unix(0, changed).UTC()
	if err := json.Unmarshal([]byte(spec), &vm.Spec); err != nil {
		return vm, fault.New(fault.Corrupt, "spec of VM %s in the database: %w", vm.ID, err)
	}
	return vm, nil
}

// storageError classifies an error of SQLite; one that is classified already stays as it is.
func storageError(doing string, err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok || err == nil {
		return err
	}
	se, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	switch se.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return fault.New(fault.Exhausted, "%s: %w", doing, err).
			WithHint("free some disk space and try again; nothing was lost")
	case sqlite3.SQLITE_IOERR:
		// A write to a full disk can also surface as an I/O error.
		if strings.Contains(err.Error(), "disk full") {
			return fault.New(fault.Exhausted, "%s: %w", doing, err).WithHint("free some disk space and try again")
		}
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fault.New(fault.Corrupt, "%s: %w", doing, err).
			WithHint("move the database aside and restore one of the copies beside it")
	}
	return fmt.Errorf("%s: %w", doing, err)
}
