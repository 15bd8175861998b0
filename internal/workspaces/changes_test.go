package workspaces_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/progress"
	"banger/internal/store"
	"banger/internal/workspaces"
)

// directoryGuest is a guest whose file system is a directory of the host.
type directoryGuest struct {
	dir string
	err error // what Get ends with after it has sent all; nil: none
}

func (g directoryGuest) Put(context.Context, string, io.Reader, guestlink.PutOptions) error {
	return fault.New(fault.Unsupported, "not here")
}

func (g directoryGuest) Get(_ context.Context, path string, w io.Writer) error {
	out := tar.NewWriter(w)
	top := filepath.Join(g.dir, path)
	if _, err := os.Stat(top); err != nil {
		return fault.New(fault.NotFound, "no such file")
	}
	err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(filepath.Dir(top), name)
		if err := out.WriteHeader(&tar.Header{Name: rel, Size: int64(len(content)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = out.Write(content)
		return err
	})
	if err == nil && g.err == nil {
		err = out.Close()
	}
	if err == nil {
		err = g.err
	}
	return err
}

// oneRecord is a store with the workspace of one VM.
type oneRecord struct{ w *workspaces.Workspace }

func (o oneRecord) SetWorkspace(context.Context, store.Workspace) error { return nil }

func (o oneRecord) Workspace(_ context.Context, id microvm.ID) (store.Workspace, error) {
	if o.w == nil || o.w.VM != id {
		return store.Workspace{}, fault.New(fault.NotFound, "none")
	}
	return *o.w, nil
}

func hostGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=Ann", "-c", "user.email=ann@example.org"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// changedVM is a VM whose workspace has one changed file, and a service that knows of it.
func changedVM(t *testing.T) (s *workspaces.Service, vm workspaces.VM, host, scratch string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	dir := t.TempDir()
	host, scratch = filepath.Join(dir, "host"), filepath.Join(dir, "scratch")
	vm = workspaces.VM{ID: "a1", Name: "devbox", Directory: filepath.Join(dir, "vm"), Guest: directoryGuest{dir: filepath.Join(dir, "guest")}}
	for _, d := range []string{host, vm.Directory, filepath.Join(dir, "guest/root")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	hostGit(t, host, "init", "-q", "-b", "main")
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hostGit(t, host, "add", "file")
	hostGit(t, host, "commit", "-q", "-m", "first")
	hostGit(t, host, "clone", "-q", "--bare", host, filepath.Join(vm.Directory, "workspace/git"))
	guest := filepath.Join(dir, "guest/root/host")
	hostGit(t, host, "clone", "-q", host, guest)
	if err := os.WriteFile(filepath.Join(guest, "file"), []byte("new\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := hostGit(t, host, "rev-parse", "HEAD^{tree}")
	w := &workspaces.Workspace{
		VM: vm.ID, GuestDir: "/root/host", HostPath: host, Head: hostGit(t, host, "rev-parse", "HEAD"), Branch: "main", Tree: tree, Files: tree,
	}
	return workspaces.New(scratch, oneRecord{w}, slog.New(slog.DiscardHandler)), vm, host, scratch
}

func nothingIn(t *testing.T, dir string) {
	t.Helper()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	s, vm, host, scratch := changedVM(t)
	var patch bytes.Buffer
	changed, err := s.Diff(t.Context(), vm, false, &patch, nil)
	if err != nil || !changed || !strings.Contains(patch.String(), "-old\n+new\n") {
		t.Errorf("diff: %v, %v, %q", changed, err, patch.String())
	}
	if b, err := s.Export(t.Context(), vm, "from-vm", false, nil); err != nil || hostGit(t, host, "show", b.Commit+":file") != "new" {
		t.Errorf("export: %+v, %v", b, err)
	}
	if a, err := s.Apply(t.Context(), vm, false, nil); err != nil || fmt.Sprint(a.Changed) != "[file]" {
		t.Errorf("apply: %+v, %v", a, err)
	}
	if content, _ := os.ReadFile(filepath.Join(host, "file")); string(content) != "new\n" {
		t.Errorf("the host's file: %q", content)
	}
	nothingIn(t, scratch)
}

func TestChangesOfNoWorkspace(t *testing.T) {
	t.Parallel()
	s, vm, _, scratch := changedVM(t)
	other := vm
	other.ID = "b2"
	if _, err := s.Diff(t.Context(), other, false, io.Discard, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("a VM without a workspace: %v", err)
	}
	vm.Guest = directoryGuest{dir: t.TempDir()}
	if _, err := s.Diff(t.Context(), vm, false, io.Discard, nil); !fault.Is(err, fault.NotFound) || fault.HintOf(err) == "" {
		t.Errorf("a workspace that is gone: %v", err)
	}
	nothingIn(t, scratch)
}

// TestChangesOfBrokenLink ends the transfer before the archive does: half of a working tree must not look like deletions.
func TestChangesOfBrokenLink(t *testing.T) {
	t.Parallel()
	s, vm, _, scratch := changedVM(t)
	g, _ := vm.Guest.(directoryGuest)
	g.err = fault.New(fault.Unavailable, "the link ended")
	vm.Guest = g
	if _, err := s.Diff(t.Context(), vm, false, io.Discard, progress.Sink(nil)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a link that breaks: %v", err)
	}
	nothingIn(t, scratch)
}
