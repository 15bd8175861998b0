package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/store"
)

// fakeBuilder makes a root filesystem in milliseconds.
type fakeBuilder struct {
	calls   atomic.Int32
	content string
	fail    error // after half of it was written
	block   chan struct{}
}

func (f *fakeBuilder) Build(ctx context.Context, e Entry, _, _ string, w io.Writer, sink progress.Sink) error {
	f.calls.Add(1)
	sink.Stage("install " + e.Suite)(nil)
	tw := tar.NewWriter(w)
	content := f.content + "#!systemd"
	err := tw.WriteHeader(&tar.Header{Name: "./usr/lib/systemd/systemd", Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = io.WriteString(tw, content)
	}
	if err != nil {
		return err
	}
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if f.fail != nil {
		return f.fail
	}
	return tw.Close()
}

// inUse are the VMs that use images.
type inUse struct {
	mu  sync.Mutex
	vms []store.ImageUser
	err error
}

func (u *inUse) ask(context.Context) ([]store.ImageUser, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.vms), u.err
}

func newStore(t *testing.T, dir string, b Builder, used *inUse) *Store {
	t.Helper()
	c := Config{Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache"), Builder: b}
	if used != nil {
		c.Users = used.ask
	}
	return New(c)
}

func ensure(t *testing.T, s *Store) Image {
	t.Helper()
	img, err := s.Ensure(t.Context(), Default, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func TestEnsure(t *testing.T) {
	t.Parallel()
	dir, b := t.TempDir(), &fakeBuilder{}
	img := ensure(t, newStore(t, dir, b, nil))
	if img.Name != Default || !img.HasSystemd || img.Source != "catalog:"+Default || img.Created.IsZero() {
		t.Errorf("got %+v", img)
	}
	if st, err := os.Stat(img.RootPath); err != nil || st.Size() != img.Size || !strings.Contains(img.RootPath, img.Digest[7:]) {
		t.Errorf("file: %v, %v", st, err)
	}
	again := ensure(t, newStore(t, dir, b, nil))
	if again.Digest != img.Digest || b.calls.Load() != 1 {
		t.Errorf("built %d times", b.calls.Load())
	}
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, moved, b, nil)
	byDigest, err := s.ByDigest(img.Digest)
	if err != nil || !exists(byDigest.RootPath) || byDigest.Name != "" || !byDigest.HasSystemd {
		t.Errorf("after a move: %+v, %v", byDigest, err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Name != Default {
		t.Errorf("list %+v, %v", list, err)
	}
	if used, err := s.Usage(); err != nil || used < 4096 {
		t.Errorf("usage %d, %v", used, err)
	}
}

func TestEnsureDecidesFirst(t *testing.T) {
	t.Parallel()
	tests := []struct {
		ref  string
		kind fault.Kind
	}{
		{"nonesuch", fault.NotFound},
		{"docker.io/library/debian", fault.NotFound},
		{"debian:12", fault.NotFound},
		{"oci:/tmp/layout", fault.Invalid},
		{"a@sha256", fault.Invalid},
		{"a:b:c", fault.Invalid},
		{"sha256:12", fault.Invalid},
		{"sha256:" + strings.Repeat("a", 64), fault.NotFound},
		{"", fault.Invalid},
		{"Debian", fault.Invalid},
		{"..", fault.Invalid},
		{".work", fault.Invalid},
		{"-x", fault.Invalid},
		{"../../etc", fault.Invalid},
		{"repo/" + strings.Repeat("a", 240), fault.Invalid},
		{"a\x00b", fault.Invalid},
	}
	for _, tt := range tests {
		b := &fakeBuilder{}
		dir := t.TempDir()
		_, err := newStore(t, dir, b, nil).Ensure(t.Context(), tt.ref, nil)
		if !fault.Is(err, tt.kind) || fault.HintOf(err) == "" {
			t.Errorf("%q: got %v, hint %q", tt.ref, err, fault.HintOf(err))
		}
		if _, err := os.Stat(filepath.Join(dir, "images", "names")); err == nil || b.calls.Load() != 0 {
			t.Errorf("%q made work", tt.ref)
		}
	}
}

func TestBuildFails(t *testing.T) {
	t.Parallel()
	dir, b := t.TempDir(), &fakeBuilder{fail: fault.New(fault.Unavailable, "mirror is down")}
	s := newStore(t, dir, b, nil)
	if _, err := s.Ensure(t.Context(), Default, nil); !fault.Is(err, fault.Unavailable) || !errors.Is(err, b.fail) {
		t.Errorf("got %v", err)
	}
	if exists(filepath.Join(s.blobDir())) || exists(s.namePath(Default)) {
		t.Error("something was published")
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "images", ".work")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	b.fail = nil
	ensure(t, s)
}

func TestBuildWritesNonsense(t *testing.T) {
	t.Parallel()
	s := newStore(t, t.TempDir(), builderFunc(func(ctx context.Context, w io.Writer) error {
		for ctx.Err() == nil { // like a program that writes until its pipe breaks
			if _, err := io.WriteString(w, strings.Repeat("junk", 1000)); err != nil {
				return err
			}
		}
		return ctx.Err()
	}), nil)
	if _, err := s.Ensure(t.Context(), Default, nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("got %v", err)
	}
}

type builderFunc func(context.Context, io.Writer) error

func (f builderFunc) Build(ctx context.Context, _ Entry, _, _ string, w io.Writer, _ progress.Sink) error {
	return f(ctx, w)
}

func TestEnsureTogether(t *testing.T) {
	t.Parallel()
	dir, b := t.TempDir(), &fakeBuilder{block: make(chan struct{})}
	stores := []*Store{newStore(t, dir, b, nil), newStore(t, dir, b, nil)} // as two processes
	impatient, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var heard, gone atomic.Int32
	for i := range 10 {
		wg.Go(func() {
			ctx := t.Context()
			if i < 2 {
				ctx = impatient
			}
			var once sync.Once
			_, err := stores[i%2].Ensure(ctx, Default, func(progress.Update) { once.Do(func() { heard.Add(1) }) })
			switch {
			case i < 2 && errors.Is(err, context.Canceled):
				gone.Add(1)
			case err != nil:
				t.Error(err)
			}
		})
	}
	for heard.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	for gone.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	close(b.block)
	wg.Wait()
	if b.calls.Load() != 1 {
		t.Errorf("built %d times", b.calls.Load())
	}
}

func TestCanceledBuildLeavesNothing(t *testing.T) {
	t.Parallel()
	dir, b := t.TempDir(), &fakeBuilder{block: make(chan struct{})}
	s := newStore(t, dir, b, nil)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Ensure(ctx, Default, func(u progress.Update) {
		if strings.HasPrefix(u.Stage, "install") {
			cancel()
		}
	})
	if !fault.Is(err, fault.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "images", ".work")); len(left) != 0 || exists(s.namePath(Default)) {
		t.Errorf("left behind: %v", left)
	}
	close(b.block)
	ensure(t, s)
}

func TestDamageHeals(t *testing.T) {
	t.Parallel()
	b := &fakeBuilder{}
	s := newStore(t, t.TempDir(), b, nil)
	img := ensure(t, s)
	damages := []struct {
		name   string
		damage func() error
	}{
		{"cut blob", func() error { return errors.Join(os.Chmod(img.RootPath, 0o600), os.Truncate(img.RootPath, 10)) }},
		{"no blob", func() error { return os.Remove(img.RootPath) }},
		{"no record", func() error { return os.Remove(metaPath(img.RootPath)) }},
		{"killed build", func() error {
			return errors.Join(os.Remove(s.namePath(Default)), os.MkdirAll(filepath.Join(s.dir, ".work", Default, "build"), 0o700))
		}},
	}
	for i, d := range damages {
		if err := d.damage(); err != nil {
			t.Fatal(err)
		}
		if got := ensure(t, s); got.Digest == "" || !exists(got.RootPath) {
			t.Errorf("%s: %+v", d.name, got)
		} else {
			img = got
		}
		if b.calls.Load() != int32(i+2) {
			t.Errorf("%s: built %d times", d.name, b.calls.Load())
		}
	}
	// A name that can't be read is an error, not a reason to build: only "not found" may lead to the catalogue.
	if err := os.WriteFile(s.namePath(Default), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(t.Context(), Default, nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("damaged name: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("the list fails for one bad image: %v, %v", list, err)
	}
	if err := s.Delete(t.Context(), Default); err != nil {
		t.Errorf("a damaged name can't be deleted: %v", err)
	}
	ensure(t, s)
}

func TestDelete(t *testing.T) {
	t.Parallel()
	b, used := &fakeBuilder{}, &inUse{}
	s := newStore(t, t.TempDir(), b, used)
	if err := s.Delete(t.Context(), Default); !fault.Is(err, fault.NotFound) {
		t.Errorf("nothing there: %v", err)
	}
	first := ensure(t, s)
	used.vms = []store.ImageUser{{VM: "box", Digest: first.Digest}, {VM: "other", Digest: "sha256:1"}, {VM: "devbox", Digest: first.Digest}}
	err := s.Delete(t.Context(), Default)
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "box, devbox") || !strings.Contains(fault.HintOf(err), "banger vm delete box devbox") {
		t.Errorf("in use: %v, hint %q", err, fault.HintOf(err))
	}
	// A VM that is being created may come to use any image, and is known to use the one that it asks for.
	used.vms = []store.ImageUser{{VM: "new", Image: Default}}
	if err := s.Delete(t.Context(), Default); !fault.Is(err, fault.Precondition) {
		t.Errorf("asked for: %v", err)
	}
	if !exists(first.RootPath) {
		t.Fatal("removed although it is in use")
	}
	used.vms = []store.ImageUser{{VM: "new", Image: "another"}}
	if err := s.Delete(t.Context(), Default); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(Default); !fault.Is(err, fault.NotFound) {
		t.Errorf("after delete: %v", err)
	}
	if img, err := s.ByDigest(first.Digest); err != nil || !exists(img.RootPath) {
		t.Errorf("an image that a VM may need is gone: %v", err)
	}
	b.content = "a newer one "
	second := ensure(t, s)
	if second.Digest == first.Digest {
		t.Fatal("test is wrong: same digest")
	}
	used.err = errors.New("database is away")
	used.vms = nil
	if err := s.Recover(t.Context()); !errors.Is(err, used.err) || !exists(first.RootPath) {
		t.Errorf("removed without knowing: %v", err)
	}
	used.err = nil
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(first.RootPath) || exists(metaPath(first.RootPath)) || !exists(second.RootPath) {
		t.Error("wrong images left")
	}
	if err := s.Delete(t.Context(), Default); err != nil || exists(second.RootPath) {
		t.Errorf("unused image still there: %v", err)
	}
}

func TestRecoverSparesABuild(t *testing.T) {
	t.Parallel()
	b := &fakeBuilder{block: make(chan struct{})}
	s := newStore(t, t.TempDir(), b, nil)
	building := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := s.Ensure(t.Context(), Default, func(u progress.Update) {
			if strings.HasPrefix(u.Stage, "install") && !u.Ended {
				close(building)
			}
		})
		done <- err
	}()
	<-building
	if err := s.Recover(t.Context()); err != nil {
		t.Error(err)
	}
	close(b.block)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCheckSpace(t *testing.T) {
	t.Parallel()
	if err := checkSpace(t.TempDir(), 1); err != nil {
		t.Error(err)
	}
	if err := checkSpace(t.TempDir(), 1<<62); !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

// TestFinishScript runs the real catalogue's script over a small root, with a control that it stays inside.
func TestFinishScript(t *testing.T) {
	t.Parallel()
	entries, err := parseCatalog(catalogJSON)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := entries[Default]
	if !ok {
		t.Fatal("the default is not in the catalogue")
	}
	e.Files["/etc/it's"] = "50% 'quoted' \\n\n"
	dir := filepath.Join(t.TempDir(), "a root")
	outside := filepath.Join(t.TempDir(), "hosts")
	for path, content := range map[string]string{
		filepath.Join(dir, "etc/ssh/ssh_host_rsa_key"): "secret", filepath.Join(dir, "etc/machine-id"): "0123", outside: "mine",
		filepath.Join(dir, "etc/systemd/system/x"): "", filepath.Join(dir, "boot/vmlinuz"): "",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "etc/hosts")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", finishScript(e), "exec", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for path, want := range map[string]string{
		"etc/machine-id": "", "etc/it's": e.Files["/etc/it's"], "etc/hosts": e.Files["/etc/hosts"],
		"etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf": e.Files["/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"],
	} {
		if got, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if got, _ := os.ReadFile(outside); string(got) != "mine" {
		t.Error("a link led out of the root")
	}
	if exists(filepath.Join(dir, "etc/ssh/ssh_host_rsa_key")) || exists(filepath.Join(dir, "boot/vmlinuz")) {
		t.Error("not removed")
	}
	if to, err := os.Readlink(filepath.Join(dir, "etc/systemd/system/getty@tty1.service")); err != nil || to != "/dev/null" {
		t.Errorf("not masked: %q, %v", to, err)
	}
}

func TestNothingIsRemovedUnasked(t *testing.T) {
	t.Parallel()
	s := newStore(t, t.TempDir(), &fakeBuilder{}, nil)
	img := ensure(t, s)
	if err := errors.Join(s.Delete(t.Context(), Default), s.Recover(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(Default); !fault.Is(err, fault.NotFound) {
		t.Errorf("the name is still there: %v", err)
	}
	if !exists(img.RootPath) {
		t.Error("an image that a VM may need was removed")
	}
}
