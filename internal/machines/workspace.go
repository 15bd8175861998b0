package machines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/store"
)

// What was put into a VM as its workspace is part of a moment of it: a copy of the VM has the files in its disks, and is
// to know as well what they are compared with. Package workspaces makes the record and the directory; here both are only
// copied, as they are.

// Workspaces keeps the records of what was put into VMs.
type Workspaces interface {
	// Workspace returns the record of a VM; fault.NotFound if it has none.
	Workspace(ctx context.Context, id microvm.ID) (store.Workspace, error)
	SetWorkspace(ctx context.Context, w store.Workspace) error
	// ForgetWorkspace removes the record of a VM, if it has one.
	ForgetWorkspace(ctx context.Context, id microvm.ID) error
}

// workspaceDir is the directory of a VM, and of a point, that has what belongs to the record.
const workspaceDir = "workspace"

// saveWorkspace copies the workspace of a VM to a point; nil: it has none. A workspace is prepared without the VM's
// lock, and then first its directory is replaced, then its record.
func saveWorkspace(ctx context.Context, h *hold, to string) (*store.Workspace, error) {
	if h.config.Workspaces == nil {
		return nil, nil //nolint:nilnil // as documented
	}
	const attempts = 3
	for range attempts {
		w, err := h.config.Workspaces.Workspace(ctx, h.vm.ID)
		if fault.Is(err, fault.NotFound) {
			return nil, nil //nolint:nilnil // as documented
		}
		if err == nil {
			err = copyWorkspace(to, h.dirs().State)
		}
		again, aerr := h.config.Workspaces.Workspace(ctx, h.vm.ID)
		if err := errors.Join(err, aerr); err != nil {
			return nil, fmt.Errorf("save workspace: %w", err)
		}
		if again == w {
			return &w, nil
		}
	}
	return nil, fault.New(fault.Busy, "its workspace changes all the time").WithHint("try again")
}

// copyWorkspace gives one directory the workspace of another, in the place of its own.
func copyWorkspace(to, from string) error {
	dst, src := filepath.Join(to, workspaceDir), filepath.Join(from, workspaceDir)
	if err := os.RemoveAll(dst); err != nil {
		return err
	}
	if _, err := os.Lstat(src); errors.Is(err, fs.ErrNotExist) {
		return nil // a plain copy has none
	}
	return os.CopyFS(dst, os.DirFS(src))
}

// restoreWorkspace gives a held VM the workspace of a point. Its directory comes first: a record without one is no good.
func (p point) restoreWorkspace(ctx context.Context, h *hold) error {
	if h.config.Workspaces == nil {
		return nil
	}
	err := copyWorkspace(h.dirs().State, p.dir)
	switch {
	case err != nil:
	case p.Workspace == nil:
		err = h.config.Workspaces.ForgetWorkspace(ctx, h.vm.ID)
	default:
		w := *p.Workspace
		w.VM = h.vm.ID
		err = h.config.Workspaces.SetWorkspace(ctx, w)
	}
	if err != nil {
		return fmt.Errorf("give VM %s its workspace: %w", h.vm.Name, err)
	}
	return nil
}
