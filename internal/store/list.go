package store

import (
	"context"
	"database/sql"
	"slices"

	"banger/internal/microvm"
)

// listing is the list of VMs as it was last read, with SQLite's word for whether it still is so: the data version, which
// differs from one look to the next on the same connection if anyone has committed a change meanwhile
// (https://www.sqlite.org/pragma.html#pragma_data_version). So it needs no telling, and cannot be stale. To look costs some
// microseconds; to read and decode a row for each VM with each request would cost a hundred times that.
//
// The turn is held over these two statements, by one reader at a time; it is waited for no longer than the context lets.
type listing struct {
	turn    chan struct{} // capacity 1
	conn    *sql.Conn     // nil: none yet
	version int64
	vms     []microvm.VM
	read    bool // vms and version are valid
}

func newListing() listing { return listing{turn: make(chan struct{}, 1)} }

// List returns every VM, oldest first. The VMs' maps are shared: they must not be changed.
func (s *Store) List(ctx context.Context) ([]microvm.VM, error) {
	l := &s.listing
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, storageError("list VMs", context.Cause(ctx))
	}
	vms, err := l.refresh(ctx, s.db)
	if err != nil {
		l.drop()
		return nil, storageError("list VMs", err)
	}
	return slices.Clone(vms), nil
}

// refresh reads the VMs if they may have changed. The version is read first, so that a change between the two statements is
// noticed the next time.
func (l *listing) refresh(ctx context.Context, db *sql.DB) ([]microvm.VM, error) {
	if l.conn == nil {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		l.conn = conn
	}
	var version int64
	if err := l.conn.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&version); err != nil {
		return nil, err
	}
	if l.read && version == l.version {
		return l.vms, nil
	}
	rows, err := l.conn.QueryContext(ctx, `SELECT `+columns+` FROM vms ORDER BY created_at, id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var vms []microvm.VM
	for rows.Next() {
		vm, err := scan(rows)
		if err != nil {
			return nil, err
		}
		vms = append(vms, vm)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	l.vms, l.version, l.read = vms, version, true
	return vms, nil
}

// drop forgets what was read and gives the connection back: after an error, which may have been its own.
func (l *listing) drop() {
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.conn, l.vms, l.read = nil, nil, false
}

// close waits for its turn and gives the connection back.
func (l *listing) close() {
	l.turn <- struct{}{}
	l.drop()
	<-l.turn
}
