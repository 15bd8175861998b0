// Package workspaces is the service of what goes between a directory of the host and a VM: the git repository, or the plain
// directory, that is put into a guest (prepare.go), and what is to be got back of it. It decides what goes where and keeps the
// record; how git is asked is package gitsync's, how a guest is reached its caller's.
//
// It holds no lock, neither of its own nor a VM's: a transfer ends with the guest's link, so that stop and delete need not wait
// for it. A directory that the guest has already is refused; two transfers of the same name at the same time would mix their files,
// which git in the guest then shows. It has no goroutines beyond its calls. Work in progress is below one scratch directory,
// which [Service.Recover] empties; what is to last of it goes into the VM's directory, by one rename, and with that when the
// VM is deleted.
package workspaces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"banger/internal/fault"
	"banger/internal/gitsync"
	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/store"
)

// Store keeps the records of workspaces.
type Store interface {
	SetWorkspace(ctx context.Context, w store.Workspace) error
	Workspace(ctx context.Context, id microvm.ID) (store.Workspace, error)
}

// Guest is what is needed of a running guest.
type Guest interface {
	Put(ctx context.Context, dir string, archive io.Reader, opts guestlink.PutOptions) error
	Get(ctx context.Context, path string, w io.Writer) error
}

// VM is the VM that a workspace is for.
type VM struct {
	ID        microvm.ID
	Name      string
	Directory string // its state directory on the host
	Guest     Guest
}

// Workspace is the record of what was put into a VM.
type Workspace = store.Workspace

// Service is the service of workspaces.
type Service struct {
	scratch string
	store   Store
	log     *slog.Logger
}

// New returns a service that works below the scratch directory, which is on the file system of the VMs' directories.
func New(scratch string, st Store, log *slog.Logger) *Service {
	return &Service{scratch: scratch, store: st, log: log}
}

// Recover removes what a killed process has left. Call it before anything else.
func (s *Service) Recover(context.Context) error {
	if err := os.RemoveAll(s.scratch); err != nil {
		return fmt.Errorf("remove unfinished workspaces: %w", err)
	}
	return nil
}

// Get returns the workspace of a VM; fault.NotFound if it has none.
func (s *Service) Get(ctx context.Context, id microvm.ID) (Workspace, error) {
	return s.store.Workspace(ctx, id)
}

// Base returns what changes in a VM are compared with. The VM's workspace must have come from a git repository:
// fault.Precondition if it is a plain copy.
func (s *Service) Base(ctx context.Context, vm VM) (Workspace, gitsync.Base, error) {
	w, err := s.store.Workspace(ctx, vm.ID)
	if fault.Is(err, fault.NotFound) {
		return w, gitsync.Base{}, fault.New(fault.NotFound, "VM %s has no workspace", vm.Name).
			WithHint("put a repository into it: banger vm workspace prepare %s .", vm.Name)
	}
	if err != nil {
		return w, gitsync.Base{}, err
	}
	if w.Copied {
		return w, gitsync.Base{}, fault.New(fault.Precondition, "the workspace of VM %s is a copy of a directory, not a git repository", vm.Name).
			WithHint("copy files out of it: banger cp %s:%s .", vm.Name, w.GuestDir)
	}
	return w, gitsync.Base{Repo: repository(vm), Head: w.Head, Tree: w.Tree, Files: w.Files, Host: w.HostPath}, nil
}

// repository is the bare repository in a VM's directory that has the objects of what was put there, beside those of the host's
// repository.
func repository(vm VM) string { return filepath.Join(vm.Directory, "workspace", "git") }

// makeScratch makes a directory for one piece of work; remove it when done.
func (s *Service) makeScratch() (dir string, remove func() error, err error) {
	if err := os.MkdirAll(s.scratch, 0o700); err != nil {
		return "", nil, fmt.Errorf("make a scratch directory: %w", err)
	}
	if dir, err = os.MkdirTemp(s.scratch, ""); err != nil {
		return "", nil, fmt.Errorf("make a scratch directory: %w", err)
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// Moved reports whether the host's repository is at another commit than it was when the VM was given it; false if there is
// none, or it can't be told.
func (s *Service) Moved(ctx context.Context, w Workspace) bool {
	if w.Copied {
		return false
	}
	head, err := gitsync.Head(ctx, w.HostPath)
	return err == nil && head != w.HostHead
}

// remove joins the error of a clean-up.
func remove(remove func() error, err *error) { *err = errors.Join(*err, remove()) }
