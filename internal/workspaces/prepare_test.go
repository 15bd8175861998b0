package workspaces_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/filetar"
	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/workspaces"
)

// guestDir is a directory that plays the guest's file system.
type guestDir struct {
	dir     string
	failing error // of Put, after some bytes
	onPut   func()
}

func (g guestDir) Put(ctx context.Context, dir string, archive io.Reader, _ guestlink.PutOptions) error {
	if g.onPut != nil {
		g.onPut()
	}
	if g.failing != nil {
		_, _ = io.CopyN(io.Discard, archive, 100)
		return g.failing
	}
	at := filepath.Join(g.dir, dir)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	if err := filetar.Unpack(root, archive, filetar.Options{}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, archive)
	return errors.Join(err, ctx.Err())
}

func (g guestDir) Get(_ context.Context, path string, w io.Writer) error {
	if _, err := os.Lstat(filepath.Join(g.dir, path)); err != nil {
		return fault.New(fault.NotFound, "%w", err)
	}
	_, err := w.Write([]byte("an archive"))
	return err
}

type fixture struct {
	service *workspaces.Service
	db      *store.Store
	vm      workspaces.VM
	guest   string
	scratch string
	repo    string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{guest: filepath.Join(dir, "guest"), scratch: filepath.Join(dir, "scratch"), repo: filepath.Join(dir, "project")}
	vmDir := filepath.Join(dir, "vm")
	for _, d := range []string{f.guest, f.repo, vmDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if f.db, err = store.Open(t.Context(), filepath.Join(dir, "db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.db.Close() })
	f.vm = workspaces.VM{ID: "0123456789ab", Name: "box", Directory: vmDir, Guest: guestDir{dir: f.guest}}
	if err := f.db.Insert(t.Context(), &microvm.VM{ID: f.vm.ID, Name: "box", State: microvm.Creating}); err != nil {
		t.Fatal(err)
	}
	f.service = workspaces.New(f.scratch, f.db, slog.New(slog.DiscardHandler))
	if err := os.WriteFile(filepath.Join(f.repo, "file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.git(t, "init", "-q", "-b", "main")
	f.git(t, "add", "-A")
	f.git(t, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", "first")
	return f
}

func (f *fixture) git(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = f.repo
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (f *fixture) request() workspaces.Request {
	return workspaces.Request{Source: workspaces.Source{Path: f.repo}}
}

// mustBeUntouched demands that nothing is left of an attempt that failed.
func (f *fixture) mustBeUntouched(t *testing.T) {
	t.Helper()
	if left, _ := os.ReadDir(f.scratch); len(left) > 0 {
		t.Errorf("left in the scratch directory: %v", left)
	}
	if _, err := f.service.Get(t.Context(), f.vm.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a workspace is recorded: %v", err)
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if _, _, err := f.service.Base(t.Context(), f.vm); !fault.Is(err, fault.NotFound) {
		t.Errorf("before: %v", err)
	}
	var bytes int64
	w, err := f.service.Prepare(t.Context(), f.vm, f.request(), func(u progress.Update) { bytes = max(bytes, u.Total) })
	if err != nil {
		t.Fatal(err)
	}
	if w.GuestDir != "/root/project" || w.HostPath != f.repo || w.Branch != "main" || w.Head != f.git(t, "rev-parse", "HEAD") || bytes != 7 {
		t.Errorf("%+v, %d bytes reported", w, bytes)
	}
	if got, err := f.service.Get(t.Context(), f.vm.ID); err != nil || got != w {
		t.Errorf("recorded: %+v, %v", got, err)
	}
	_, base, err := f.service.Base(t.Context(), f.vm)
	if err != nil {
		t.Fatal(err)
	}
	if out := f.git(t, "--git-dir="+base.Repo, "ls-tree", base.Tree); !strings.Contains(out, "file") {
		t.Errorf("the tree can't be read later: %s", out)
	}
	if left, _ := os.ReadDir(f.scratch); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if f.service.Moved(t.Context(), w) {
		t.Error("the host is said to have moved on")
	}
	f.git(t, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "--allow-empty", "-m", "second")
	if !f.service.Moved(t.Context(), w) {
		t.Error("the host has moved on unnoticed")
	}
	elsewhere := f.vm
	elsewhere.Guest = guestDir{dir: t.TempDir()}
	req := f.request()
	req.Branch, req.From = "try", "HEAD~1"
	if w, err := f.service.Prepare(t.Context(), elsewhere, req, nil); err != nil || w.Head != f.git(t, "rev-parse", "HEAD~1") || f.service.Moved(t.Context(), w) {
		t.Errorf("a branch that begins elsewhere: %+v, %v; or the host is said to have moved on", w, err)
	}
	if w, err = f.service.Get(t.Context(), f.vm.ID); err != nil {
		t.Fatal(err)
	}
	// The guest's directory is its own from now on.
	if _, err := f.service.Prepare(t.Context(), f.vm, f.request(), nil); !fault.Is(err, fault.Exists) || fault.HintOf(err) == "" {
		t.Errorf("a second time: %v", err)
	}
	if now, err := f.service.Get(t.Context(), f.vm.ID); err != nil || now != w {
		t.Errorf("the record has changed: %+v, %v", now, err)
	}
}

func TestPrepareThatFails(t *testing.T) {
	t.Parallel()
	t.Run("the guest goes away", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.vm.Guest = guestDir{dir: f.guest, failing: fault.New(fault.Unavailable, "the link is gone")}
		if _, err := f.service.Prepare(t.Context(), f.vm, f.request(), nil); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", err)
		}
		f.mustBeUntouched(t)
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		ctx, cancel := context.WithCancel(t.Context())
		f.vm.Guest = guestDir{dir: f.guest, onPut: cancel}
		if _, err := f.service.Prepare(ctx, f.vm, f.request(), nil); !fault.Is(err, fault.Canceled) {
			t.Errorf("%v", err)
		}
		f.mustBeUntouched(t)
	})
	t.Run("the VM is deleted meanwhile", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.vm.Guest = guestDir{dir: f.guest, onPut: func() {
			if err := errors.Join(f.db.Remove(t.Context(), f.vm.ID), os.RemoveAll(f.vm.Directory)); err != nil {
				t.Error(err)
			}
		}}
		if _, err := f.service.Prepare(t.Context(), f.vm, f.request(), nil); err == nil {
			t.Error("no error")
		}
		f.mustBeUntouched(t)
		if _, err := os.Lstat(f.vm.Directory); err == nil {
			t.Error("the VM's directory is there again")
		}
	})
	t.Run("killed before", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		if err := os.MkdirAll(filepath.Join(f.scratch, "left", "git"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := f.service.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.mustBeUntouched(t)
	})
}

func TestCopy(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	req := f.request()
	req.Copy = true
	w, err := f.service.Prepare(t.Context(), f.vm, req, nil)
	if err != nil || !w.Copied || w.GuestDir != "/root/project" || w.Tree != "" {
		t.Fatalf("%+v, %v", w, err)
	}
	if content, err := os.ReadFile(filepath.Join(f.guest, "root/project/file")); err != nil || string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
	if f.service.Moved(t.Context(), w) {
		t.Error("a copy has no HEAD")
	}
	if _, _, err := f.service.Base(t.Context(), f.vm); !fault.Is(err, fault.Precondition) {
		t.Errorf("changes of a copy: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for name, c := range map[string]struct {
		req  workspaces.Request
		kind fault.Kind
	}{
		"a relative path":      {workspaces.Request{Source: workspaces.Source{Path: "project"}}, fault.Invalid},
		"no repository":        {workspaces.Request{Source: workspaces.Source{Path: f.guest}}, fault.Invalid},
		"a copy with history":  {workspaces.Request{Source: workspaces.Source{Path: f.repo, Full: true}, Copy: true}, fault.Invalid},
		"a copy of a file":     {workspaces.Request{Source: workspaces.Source{Path: filepath.Join(f.repo, "file")}, Copy: true}, fault.Invalid},
		"a copy of nothing":    {workspaces.Request{Source: workspaces.Source{Path: f.repo + "x"}, Copy: true}, fault.NotFound},
		"a copy of everything": {workspaces.Request{Source: workspaces.Source{Path: "/"}, Copy: true}, fault.Invalid},
	} {
		if err := f.service.Check(t.Context(), c.req); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := f.service.Check(t.Context(), f.request()); err != nil {
		t.Error(err)
	}
}
