package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// Workspace is what was put into a VM from the host, by git or as a plain copy.
type Workspace struct {
	VM         microvm.ID
	GuestDir   string // where it is in the guest, absolute
	HostPath   string // the top of the working tree, or the directory that was copied
	Copied     bool   // a plain directory; what follows, up to Files, is then empty
	Head       string // id of the commit; empty: there was none yet
	HostHead   string // id of the commit that the host had checked out then: another, if a branch was begun elsewhere
	Branch     string // without refs/heads/; empty: the head was detached
	Tree       string // id of the tree that git would make of the working tree
	Files      string // id of the tree of the files in the guest, byte for byte: filters and sparse checkouts make it another
	PreparedAt time.Time
}

// SetWorkspace records the workspace of a VM in place of the one that it had. It is fault.NotFound if there is no such VM.
func (s *Store) SetWorkspace(ctx context.Context, w Workspace) error {
	res, err := s.db.ExecContext(ctx,
		`INSERT OR REPLACE INTO workspaces (vm_id, guest_dir, host_path, copied, head, host_head, branch, tree, files, prepared_at)
		 SELECT id, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM vms WHERE id = ?`,
		w.GuestDir, []byte(w.HostPath), w.Copied, w.Head, w.HostHead, w.Branch, w.Tree, w.Files, w.PreparedAt.UnixNano(), w.VM)
	if err != nil {
		return storageError("record workspace of VM "+string(w.VM), err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return fault.New(fault.NotFound, "no VM with id %s", w.VM)
	}
	return nil
}

// ForgetWorkspace removes the record of a VM's workspace, if it has one.
func (s *Store) ForgetWorkspace(ctx context.Context, id microvm.ID) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM workspaces WHERE vm_id = ?`, id)
	return storageError("forget workspace of VM "+string(id), err)
}

// Workspace returns the workspace of a VM; fault.NotFound if it has none.
func (s *Store) Workspace(ctx context.Context, id microvm.ID) (Workspace, error) {
	w := Workspace{VM: id}
	var path []byte
	var at int64
	err := s.db.QueryRowContext(ctx,
		`SELECT guest_dir, host_path, copied, head, host_head, branch, tree, files, prepared_at FROM workspaces WHERE vm_id = ?`, id).
		Scan(&w.GuestDir, &path, &w.Copied, &w.Head, &w.HostHead, &w.Branch, &w.Tree, &w.Files, &at)
	if errors.Is(err, sql.ErrNoRows) {
		return w, fault.New(fault.NotFound, "VM %s has no workspace", id)
	}
	w.HostPath, w.PreparedAt = string(path), time.Unix(0, at).UTC()
	return w, storageError("read workspace of VM "+string(id), err)
}
