package workspaces

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/filetar"
	"banger/internal/gitsync"
	"banger/internal/guestlink"
	"banger/internal/progress"
)

// guestHome is the directory of the guest in which workspaces lie.
const guestHome = "/root"

// Source says what of a git repository goes into a VM.
type Source = gitsync.Source

// Request says what goes into a VM.
type Request struct {
	Source

	Copy bool // the directory as it is, whether it is in a git repository or not
}

// Preview is what would go into a VM.
type Preview struct {
	GuestDir, Head, Branch string
	Notices                []string
	Files                  []gitsync.File
}

// check refuses what contradicts itself.
func (r Request) check() error {
	if !filepath.IsAbs(r.Path) {
		return fault.New(fault.Invalid, "the path %q of the workspace is not absolute", r.Path)
	}
	if r.Copy && (r.Full || r.Untracked || r.Branch != "" || r.From != "") {
		return fault.New(fault.Invalid, "a plain copy knows no history, branches or untracked files").WithHint("leave --copy out")
	}
	return nil
}

// Check refuses a request that can't be met, at small cost and before a VM is made for it.
func (s *Service) Check(ctx context.Context, req Request) error {
	if err := req.check(); err != nil {
		return err
	}
	if req.Copy {
		_, err := copied(req.Path)
		return err
	}
	return gitsync.Check(ctx, req.Source)
}

// Plan returns what Prepare would put into a VM; of a plain copy it lists no files.
func (s *Service) Plan(ctx context.Context, req Request) (_ Preview, err error) {
	if err := req.check(); err != nil {
		return Preview{}, err
	}
	if req.Copy {
		return Preview{}, fault.New(fault.Invalid, "a plain copy takes all that is in the directory: there is no more to tell")
	}
	dir, drop, err := s.makeScratch()
	if err != nil {
		return Preview{}, err
	}
	defer remove(drop, &err)
	ship, err := gitsync.Plan(ctx, req.Source, dir)
	if err != nil {
		return Preview{}, err
	}
	return Preview{
		GuestDir: path.Join(guestHome, ship.Name()), Head: ship.Head, Branch: ship.Branch, Notices: ship.Notices, Files: ship.List(),
	}, nil
}

// Prepare puts a repository or a directory into a running VM and records it as the VM's workspace. What is in the guest's
// directory already is not touched: fault.Exists.
func (s *Service) Prepare(ctx context.Context, vm VM, req Request, report progress.Sink) (_ Workspace, err error) {
	if err := req.check(); err != nil {
		return Workspace{}, err
	}
	if req.Copy {
		return s.copyInto(ctx, vm, req.Path, report)
	}
	dir, drop, err := s.makeScratch()
	if err != nil {
		return Workspace{}, err
	}
	defer remove(drop, &err)
	end := report.Stage("look at repository")
	ship, err := gitsync.Plan(ctx, req.Source, dir)
	end(err)
	if err != nil {
		return Workspace{}, err
	}
	guestDir := path.Join(guestHome, ship.Name())
	if err := absent(ctx, vm, guestDir); err != nil {
		return Workspace{}, err
	}
	quarantine, err := ship.Pack(ctx, report)
	if err != nil {
		return Workspace{}, err
	}
	err = send(ctx, vm, report, func(w io.Writer) error { return ship.Write(ctx, w, report) })
	if err != nil {
		return Workspace{}, err
	}
	notices(report, ship.Notices...)
	if err := keep(quarantine, vm); err != nil {
		return Workspace{}, err
	}
	w := Workspace{
		VM: vm.ID, GuestDir: guestDir, HostPath: ship.Repo, Head: ship.Head, HostHead: ship.HostHead, Branch: ship.Branch, Tree: ship.Tree, Files: ship.Files,
		PreparedAt: time.Now().UTC(),
	}
	if err := s.store.SetWorkspace(ctx, w); err != nil {
		return Workspace{}, err
	}
	s.log.InfoContext(ctx, "workspace prepared", "vm", vm.ID, "path", w.HostPath, "head", w.Head)
	return w, nil
}

// copyInto is Prepare for a plain directory.
func (s *Service) copyInto(ctx context.Context, vm VM, dir string, report progress.Sink) (Workspace, error) {
	dir = filepath.Clean(dir)
	guestDir, err := copied(dir)
	if err != nil {
		return Workspace{}, err
	}
	if err := absent(ctx, vm, guestDir); err != nil {
		return Workspace{}, err
	}
	left := 0
	err = send(ctx, vm, report, func(w io.Writer) error {
		counted := &sentBytes{w: w, report: report}
		archive := tar.NewWriter(counted)
		err := filetar.Pack(ctx, archive, dir, filetar.PackOptions{Follow: true, Name: filepath.Base(dir), Plain: true, LeftOut: func(string) { left++ }})
		return errors.Join(err, closeUnless(err, archive))
	})
	if err != nil {
		return Workspace{}, err
	}
	if left > 0 {
		notices(report, fmt.Sprintf("%d devices and pipes stay behind", left))
	}
	w := Workspace{VM: vm.ID, GuestDir: guestDir, HostPath: dir, Copied: true, PreparedAt: time.Now().UTC()}
	return w, s.store.SetWorkspace(ctx, w)
}

// copied returns where a directory goes in the guest.
func copied(dir string) (guestDir string, err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", fault.New(fault.NotFound, "open the directory to copy: %w", err)
	}
	if !info.IsDir() {
		return "", fault.New(fault.Invalid, "%s is not a directory", dir).WithHint("copy files with: banger cp")
	}
	if guestDir = path.Join(guestHome, filepath.Base(dir)); guestDir == guestHome {
		return "", fault.New(fault.Invalid, "the whole file system of the host can't be copied")
	}
	return guestDir, nil
}

// notices tells what people should know, all at once: a stage keeps only its newest report.
func notices(report progress.Sink, texts ...string) {
	if len(texts) > 0 {
		report.Send(progress.Update{Stage: "check workspace", Ended: true, Warning: strings.Join(texts, "; ")})
	}
}

func closeUnless(err error, c io.Closer) error {
	if err != nil {
		return nil
	}
	return c.Close()
}

// send streams an archive into the guest's home. The error of whoever writes it goes before what the guest makes of its end.
func send(ctx context.Context, vm VM, report progress.Sink, write func(io.Writer) error) (err error) {
	end := report.Stage(gitsync.SendStage)
	defer func() { end(err) }()
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(w)
		_ = w.CloseWithError(err)
		written <- err
	}()
	err = vm.Guest.Put(ctx, guestHome, r, guestlink.PutOptions{})
	_ = r.CloseWithError(errGuestDone)
	if werr := <-written; werr != nil && !errors.Is(werr, errGuestDone) {
		return werr
	}
	if err != nil {
		return fmt.Errorf("put the workspace into VM %s: %w", vm.Name, err)
	}
	return nil
}

var errGuestDone = errors.New("the guest takes no more")

// absent refuses a directory that the guest has already.
func absent(ctx context.Context, vm VM, dir string) error {
	err := vm.Guest.Get(ctx, dir, refuse{})
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err == nil, errors.Is(err, errThere):
		return fault.New(fault.Exists, "VM %s has a %s already", vm.Name, dir).
			WithHint("take it away first: banger exec %s -- mv %s %s.old", vm.Name, dir, dir)
	}
	return fmt.Errorf("look for %s in VM %s: %w", dir, vm.Name, err)
}

var errThere = errors.New("there is something")

type refuse struct{}

func (refuse) Write([]byte) (int, error) { return 0, errThere }

// keep moves the repository with the objects of what was sent into the VM's directory. One that is being deleted has none any
// more, and gets none.
func keep(quarantine string, vm VM) error {
	dir := filepath.Dir(repository(vm))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("keep what VM %s was given: %w", vm.Name, err)
	}
	if err := os.RemoveAll(repository(vm)); err != nil {
		return fmt.Errorf("keep what VM %s was given: %w", vm.Name, err)
	}
	if err := os.Rename(quarantine, repository(vm)); err != nil {
		return fmt.Errorf("keep what VM %s was given: %w", vm.Name, err)
	}
	return nil
}

// sentBytes reports the bytes that pass.
type sentBytes struct {
	w      io.Writer
	report progress.Sink
	n      int64
	told   time.Time
}

func (c *sentBytes) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if now := time.Now(); now.Sub(c.told) > 100*time.Millisecond {
		c.told = now
		c.report.Send(progress.Update{Stage: gitsync.SendStage, Current: c.n, Unit: "bytes"})
	}
	return n, err
}
