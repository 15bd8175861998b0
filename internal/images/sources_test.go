package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"banger/internal/fault"
	"banger/internal/oci"
	"banger/internal/progress"
	"banger/internal/store"
)

// fakeSources is a registry: its images by reference, each with one file. An archive's content is the name of its image.
type fakeSources struct {
	mu       sync.Mutex
	images   map[string]fakeImage
	opened   atomic.Int32
	written  atomic.Int32
	block    chan struct{} // WriteTar waits for it to be closed; may be nil
	fail     error         // of WriteTar, after half of it
	prunable int64
}

type fakeImage struct{ content, cmd, platform string }

func (f *fakeSources) set(ref string, img fakeImage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images == nil {
		f.images = map[string]fakeImage{}
	}
	f.images[ref] = img
}

func (f *fakeSources) Open(_ context.Context, ref string, p oci.Platform) (Source, error) {
	f.opened.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	img, ok := f.images[ref]
	if !ok {
		return nil, fault.New(fault.NotFound, "the registry has no %s", ref)
	}
	if p.Architecture != "" {
		img.platform = p.String()
	}
	return &fakeSource{f, ref, img}, nil
}

func (f *fakeSources) OpenArchive(_ context.Context, path, _ string) (Source, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) > 600 { // what a test streams is a tar; the rest of it names the image
		data = data[512:520]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name := strings.Trim(string(data), "\x00")
	return &fakeSource{f, name, f.images[name]}, nil
}

func (f *fakeSources) Prune(_ context.Context, dryRun bool) (int64, error) {
	n := f.prunable
	if !dryRun {
		f.prunable = 0
	}
	return n, nil
}

type fakeSource struct {
	registry *fakeSources
	ref      string
	img      fakeImage
}

func (s *fakeSource) Image() oci.Image {
	p, _ := oci.ParsePlatform("amd64")
	if s.img.platform != "" {
		p, _ = oci.ParsePlatform(s.img.platform)
	}
	return oci.Image{
		Ref: s.ref, Digest: "sha256:" + s.img.content + s.img.cmd, Config: oci.Config{Cmd: []string{s.img.cmd}}, Platform: p,
		Layers: []oci.Layer{{Digest: "sha256:1", Size: 1}},
	}
}

func (s *fakeSource) Close() error { return nil }

func (s *fakeSource) WriteTar(ctx context.Context, w io.Writer, sink progress.Sink) error {
	s.registry.written.Add(1)
	sink.Send(progress.Update{Stage: "fetch layer"})
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, Size: int64(len(s.img.content)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := io.WriteString(tw, s.img.content); err != nil {
		return err
	}
	if s.registry.block != nil {
		select {
		case <-s.registry.block:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if s.registry.fail != nil {
		return s.registry.fail
	}
	return tw.Close()
}

func newPuller(t *testing.T, f *fakeSources, used *inUse) *Store {
	t.Helper()
	dir := t.TempDir()
	c := Config{Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache"), Builder: &fakeBuilder{}, Sources: f}
	if used == nil {
		used = &inUse{}
	}
	c.Users = used.ask
	return New(c)
}

func pull(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPullByAnyName(t *testing.T) {
	t.Parallel()
	f := &fakeSources{}
	f.set("alpine:3.20", fakeImage{content: "a", cmd: "sh"})
	f.set("alpine:latest", fakeImage{content: "b", cmd: "sh"})
	s := newPuller(t, f, nil)
	img := pull(t, s, "docker.io/library/alpine:3.20")
	if img.Name != "alpine:3.20" || img.Config.Cmd[0] != "sh" || img.Manifest != "sha256:ash" || img.Platform != "linux/amd64" {
		t.Errorf("%+v", img)
	}
	for _, ref := range []string{"alpine:3.20", "docker.io/alpine:3.20", "docker://alpine:3.20", img.Digest} {
		again, err := s.Ensure(t.Context(), ref, nil)
		if err != nil || again.Digest != img.Digest {
			t.Errorf("%s: %+v, %v", ref, again, err)
		}
	}
	if f.opened.Load() != 1 {
		t.Errorf("the registry was asked %d times", f.opened.Load())
	}
	if latest, err := s.Ensure(t.Context(), "alpine", nil); err != nil || latest.Name != "alpine:latest" || latest.Digest == img.Digest {
		t.Errorf("%+v, %v", latest, err)
	}
	_, err := s.Ensure(t.Context(), "debian-bokworm", nil)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(fault.HintOf(err), Default) {
		t.Errorf("misspelt: %v, %q", err, fault.HintOf(err))
	}
}

func TestPullFollowsATag(t *testing.T) {
	t.Parallel()
	f, used := &fakeSources{}, &inUse{}
	f.set("app:1", fakeImage{content: "old", cmd: "a"})
	s := newPuller(t, f, used)
	old := pull(t, s, "app:1")
	if same := pull(t, s, "app:1"); same.Digest != old.Digest || f.written.Load() != 1 {
		t.Errorf("an image that is the same was made again: %d", f.written.Load())
	}
	used.vms = []store.ImageUser{{VM: "box", Digest: old.Digest}}
	f.set("app:1", fakeImage{content: "new", cmd: "a"})
	if img, err := s.Ensure(t.Context(), "app:1", nil); err != nil || img.Digest != old.Digest {
		t.Errorf("who only uses an image gets another: %v", err)
	}
	moved := pull(t, s, "app:1")
	if moved.Digest == old.Digest {
		t.Fatal("the tag was not followed")
	}
	items, err := s.Items(t.Context())
	if err != nil || len(items) != 2 || items[0].Name != "app:1" || items[1].Name != "" || items[1].Users[0] != "box" {
		t.Errorf("%+v, %v", items, err)
	}
	// Another name for what is here costs no download, and is shared.
	f.set("copy:1", fakeImage{content: "new", cmd: "a"})
	f.set("likewise:1", fakeImage{content: "new", cmd: "b"})
	written := f.written.Load()
	if img := pull(t, s, "copy:1"); img.Digest != moved.Digest || f.written.Load() != written {
		t.Errorf("%+v, written %d times", img, f.written.Load())
	}
	if img := pull(t, s, "likewise:1"); img.Digest != moved.Digest || img.Config.Cmd[0] != "b" || pull(t, s, "copy:1").Config.Cmd[0] != "a" {
		t.Errorf("images with one filesystem lost what is their own: %+v", img)
	}
	checkSizes(t, s)
	if err := s.Delete(t.Context(), "copy:1"); err != nil {
		t.Error(err)
	}
}

// checkSizes checks that what images take adds up to what the store takes.
func checkSizes(t *testing.T, s *Store) {
	t.Helper()
	items, err := s.Items(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	shared := map[string]int64{}
	for _, it := range items {
		sum += it.Unique
		if it.Shared > 0 {
			shared[it.Digest] = it.Shared
		}
		if (it.Unique > 0) == (it.Shared > 0) {
			t.Errorf("%s: unique %d and shared %d", it.Name, it.Unique, it.Shared)
		}
	}
	for _, n := range shared {
		sum += n
	}
	if used, err := s.Usage(); err != nil || used != sum {
		t.Errorf("sizes add up to %d, and the store takes %d, %v", sum, used, err)
	}
}

func TestPullPlatform(t *testing.T) {
	t.Parallel()
	f := &fakeSources{}
	f.set("app:1", fakeImage{content: "x"})
	s := newPuller(t, f, nil)
	img, err := s.Pull(t.Context(), "app:1", "linux/s390x", nil)
	if err != nil || img.Platform != "linux/s390x" {
		t.Fatalf("%+v, %v", img, err)
	}
	if _, err := s.Ensure(t.Context(), "app:1", nil); !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.HintOf(err), "--platform") {
		t.Errorf("an image for another machine would be booted: %v", err)
	}
	if _, err := s.Pull(t.Context(), "app:1", "linux//", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	if _, err := s.Pull(t.Context(), Default, "linux/arm64", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestPullTogether(t *testing.T) {
	t.Parallel()
	f := &fakeSources{block: make(chan struct{})}
	f.set("app:1", fakeImage{content: "x"})
	s := newPuller(t, f, nil)
	var wg sync.WaitGroup
	heard := make(chan struct{}, 8)
	for range 8 {
		wg.Go(func() {
			var once sync.Once
			if _, err := s.Ensure(t.Context(), "app:1", func(progress.Update) { once.Do(func() { heard <- struct{}{} }) }); err != nil {
				t.Error(err)
			}
		})
	}
	for range 8 {
		<-heard
	}
	// A prune meanwhile takes nothing away.
	if _, err := s.Prune(t.Context(), false); err != nil {
		t.Error(err)
	}
	close(f.block)
	wg.Wait()
	if f.written.Load() != 1 {
		t.Errorf("pulled %d times", f.written.Load())
	}
}

func TestPullFails(t *testing.T) {
	t.Parallel()
	f := &fakeSources{fail: fault.New(fault.Corrupt, "a wrong digest")}
	f.set("app:1", fakeImage{content: "x"})
	s := newPuller(t, f, nil)
	if _, err := s.Ensure(t.Context(), "app:1", nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("%v", err)
	}
	if items, err := s.Items(t.Context()); err != nil || len(items) != 0 {
		t.Errorf("published: %v, %v", items, err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, ".work")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	f.fail = nil
	pull(t, s, "app:1")
}

// someTar is an archive whose image the fake finds by its content.
func someTar(t *testing.T, image string) string {
	t.Helper()
	var b strings.Builder
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "n", Size: int64(len(image)), Mode: 0o600, Typeflag: tar.TypeReg})
	_, werr := io.WriteString(w, image)
	if err := errors.Join(err, werr, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestImport(t *testing.T) {
	t.Parallel()
	f := &fakeSources{}
	f.set("app:dev", fakeImage{content: "x", cmd: "c"})
	s := newPuller(t, f, nil)
	img, err := s.Import(t.Context(), ImportRequest{Stream: strings.NewReader(someTar(t, "app:dev")), From: "stdin"}, nil)
	if err != nil || img.Name != "app:dev" || img.Source != "archive:stdin" || img.Config.Cmd[0] != "c" {
		t.Fatalf("%+v, %v", img, err)
	}
	file := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(file, []byte("app:dev"), 0o600); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Import(t.Context(), ImportRequest{Path: file, Name: "mine"}, nil); err != nil || img.Name != "mine" || img.Source != "archive:a.tar" {
		t.Errorf("%+v, %v", img, err)
	}
	checkSizes(t, s)
	noArchive := func(text string) ImportRequest {
		return ImportRequest{Name: "bad", Stream: io.MultiReader(strings.NewReader(text), forever{})}
	}
	for name, tc := range map[string]struct {
		req  ImportRequest
		kind fault.Kind
	}{
		"text without end":  {noArchive("hello"), fault.Invalid},
		"zeros without end": {noArchive(""), fault.Invalid},
		"nothing":           {ImportRequest{Name: "bad", Stream: strings.NewReader("")}, fault.Invalid},
		"broken stream":     {ImportRequest{Name: "bad", Stream: io.MultiReader(strings.NewReader(someTar(t, "app:dev")), broken{})}, fault.Unavailable},
		"no name":           {ImportRequest{Stream: strings.NewReader(someTar(t, ""))}, fault.Invalid},
		"catalogue's name":  {ImportRequest{Name: Default, Path: file}, fault.Exists},
		"bad name":          {ImportRequest{Name: "../x", Path: file}, fault.Invalid},
		"relative path":     {ImportRequest{Name: "bad", Path: "a.tar"}, fault.Invalid},
		"missing":           {ImportRequest{Name: "bad", Path: file + "x"}, fault.NotFound},
		"device":            {ImportRequest{Name: "bad", Path: "/dev/zero"}, fault.Invalid},
	} {
		if _, err := s.Import(t.Context(), tc.req, nil); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if items, err := s.Items(t.Context()); err != nil || len(items) != 2 {
		t.Errorf("%v, %v", items, err)
	}
	for _, sub := range []string{".work", ".locks"} {
		left, _ := filepath.Glob(filepath.Join(s.dir, sub, "%scratch*"))
		if len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	}
}

type forever struct{}

func (forever) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, fault.New(fault.Unavailable, "gone") }

func TestRegister(t *testing.T) {
	t.Parallel()
	used := &inUse{}
	s := newPuller(t, &fakeSources{}, used)
	built := ensure(t, s)
	file := filepath.Join(t.TempDir(), "root.ext4")
	data, err := os.ReadFile(built.RootPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := s.Register(t.Context(), RegisterRequest{Name: "mine", Root: file}, nil)
	if err != nil || img.RootPath != file || !img.Registered {
		t.Fatalf("%+v, %v", img, err)
	}
	if again, err := s.ByDigest(img.Digest); err != nil || again.RootPath != file {
		t.Errorf("by its digest: %+v, %v", again, err)
	}
	for _, damage := range []func() error{
		func() error { return os.Truncate(file, int64(len(data))) }, func() error { return os.Remove(file) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Ensure(t.Context(), "mine", nil); !fault.Is(err, fault.Precondition) || fault.HintOf(err) == "" {
			t.Errorf("%v", err)
		}
		if items, err := s.Items(t.Context()); err != nil || len(items) != 2 || items[1].Damaged == "" {
			t.Errorf("%+v, %v", items, err)
		}
	}
	if err := s.Delete(t.Context(), "mine"); err != nil {
		t.Error(err)
	}
	for name, req := range map[string]RegisterRequest{
		"no name": {Root: file}, "relative": {Name: "x", Root: "f"}, "no file": {Name: "x", Root: file},
		"directory": {Name: "x", Root: t.TempDir()}, "no ext4": {Name: "x", Root: os.Args[0]}, "device": {Name: "x", Root: "/dev/zero"},
	} {
		if _, err := s.Register(t.Context(), req, nil); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	f, used := &fakeSources{prunable: 1000}, &inUse{}
	f.set("app:1", fakeImage{content: "old"})
	s := newPuller(t, f, used)
	old := pull(t, s, "app:1")
	f.set("app:1", fakeImage{content: "new"})
	pull(t, s, "app:1")
	if err := os.MkdirAll(filepath.Join(s.dir, ".work", "killed", "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	what := func(p Pruned) (words []string) {
		for _, it := range p.Items {
			words = append(words, it.What)
		}
		return words
	}
	want := "unfinished work, image " + old.Digest + ", fetched layers"
	dry, err := s.Prune(t.Context(), true)
	if err != nil || strings.Join(what(dry), ", ") != want || !exists(old.RootPath) {
		t.Errorf("dry run: %v, %v", dry, err)
	}
	real, err := s.Prune(t.Context(), false)
	if err != nil || strings.Join(what(real), ", ") != want || real.Bytes != dry.Bytes || exists(old.RootPath) {
		t.Errorf("%v, %v", real, err)
	}
	if again, err := s.Prune(t.Context(), false); err != nil || len(again.Items) != 0 {
		t.Errorf("a second time: %v, %v", again, err)
	}
	if _, err := s.Get("app:1"); err != nil {
		t.Errorf("an image with a name is gone: %v", err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"debian-bookworm", "a.b", "alpine:3.20", "ghcr.io/a/b@sha256:01", "host:5000/x_y/z:T_a"} {
		if back, ok := nameOf(fileOf(name)); !ok || back != name || strings.ContainsAny(fileOf(name), "/:") {
			t.Errorf("%s: %s, %s, %v", name, fileOf(name), back, ok)
		}
	}
	for _, file := range []string{"%zz", "a%2fb", "a+b", "A/b"} {
		if name, ok := nameOf(file); ok {
			t.Errorf("%s is a file of %s", file, name)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, seed := range []string{"alpine", "alpine:3.20", "../x", "a/b:c@sha256:", "docker://a", "oci:x", "sha256:1", "%2e%2e", "a\x00"} {
		f.Add(seed)
	}
	s := New(Config{Dir: f.TempDir()})
	f.Fuzz(func(t *testing.T, ref string) {
		m, err := s.mean(ref)
		if err != nil {
			return
		}
		if m.digest == "" && (filepath.Dir(s.namePath(m.key())) != s.nameDir() || fileOf(m.key())[0] == '.' || len(fileOf(m.key())) > 255-len(".json")) {
			t.Errorf("%q is kept at %s", ref, s.namePath(m.key()))
		}
	})
}
