package kernels

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
	"banger/internal/progress"
)

const release = "6.1.0-1-test"

// testConfig is of a kernel that has all it needs on QEMU.
const testConfig = `CONFIG_PVH=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_DEVTMPFS=y
CONFIG_TMPFS=y
CONFIG_EXT4_FS=y
CONFIG_OVERLAY_FS=m
CONFIG_VIRTIO_MMIO=m
CONFIG_VIRTIO_BLK=m
CONFIG_VIRTIO_CONSOLE=m
CONFIG_ACPI=y
`

// bzImage makes a kernel image around a payload.
func bzImage(payload []byte) []byte {
	image := make([]byte, 0x400)
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(image[0x20e:], 0x100)
	copy(image[0x300:], release+" (builder@host) #1\x00")
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(append(append(image, make([]byte, 16)...), payload...), "trailing"...)
}

func sized(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(size))
}

// fakeSource makes a kernel in milliseconds.
type fakeSource struct {
	calls atomic.Int32
	fail  error
	block chan struct{}
	left  string // a module to leave out
}

func (f *fakeSource) Fetch(ctx context.Context, _, _, _, root string, sink progress.Sink) (Fetched, error) {
	f.calls.Add(1)
	sink.Stage("fetch")(nil)
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return Fetched{}, ctx.Err()
		}
	}
	if f.fail != nil {
		return Fetched{}, f.fail
	}
	modules := filepath.Join(root, "lib/modules", release)
	kernel := []byte("\x7fELF kernel")
	z, _ := zstd.NewWriter(nil)
	files := map[string]string{
		filepath.Join(root, "boot/vmlinuz-"+release): string(bzImage(sized(z.EncodeAll(kernel, nil), len(kernel)))),
		filepath.Join(root, "boot/config-"+release):  testConfig,
		filepath.Join(modules, "modules.builtin"):    "kernel/fs/ext4/ext4.ko\n",
	}
	var dep strings.Builder
	for _, name := range bootModules() {
		if name != "ext4" && name != f.left {
			dep.WriteString("kernel/" + name + ".ko:\n")
			files[filepath.Join(modules, "kernel", name+".ko")] = "module " + name
		}
	}
	files[filepath.Join(modules, "modules.dep")] = dep.String()
	files[filepath.Join(modules, "kernel/docker.ko")] = "not needed at boot"
	for path, content := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			return Fetched{}, err
		}
	}
	return Fetched{Source: "linux", Package: "linux-image", Version: "6.1-1"}, nil
}

func newStore(t *testing.T, dir string, source Source) *Store {
	t.Helper()
	return New(Config{Dir: filepath.Join(dir, "kernels"), CacheDir: filepath.Join(dir, "cache"), Source: source})
}

func TestEnsure(t *testing.T) {
	t.Parallel()
	dir, source := t.TempDir(), &fakeSource{}
	s := newStore(t, dir, source)
	k, err := s.Ensure(t.Context(), Default, nil)
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != release || k.Package != "linux-image" || k.Version != "6.1-1" || !strings.HasPrefix(k.Digest, "sha256:") {
		t.Errorf("got %+v", k)
	}
	for _, path := range []string{k.ImagePath, k.ELFPath, k.ConfigPath, k.ModulesImage} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o444 {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}
	if elf, _ := os.ReadFile(k.ELFPath); string(elf) != "\x7fELF kernel" {
		t.Errorf("unpacked kernel is %q", elf)
	}
	again, err := newStore(t, dir, source).Ensure(t.Context(), Default, nil)
	if err != nil || again != k || source.calls.Load() != 1 {
		t.Errorf("again: %+v, %v, fetched %d times", again, err, source.calls.Load())
	}
	moved := t.TempDir()
	if err := os.Rename(dir, filepath.Join(moved, "x")); err != nil {
		t.Fatal(err)
	}
	list, err := newStore(t, filepath.Join(moved, "x"), source).List()
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].ImagePath, moved) {
		t.Errorf("after a move: %+v, %v", list, err)
	}
}

func TestEnsureUnknown(t *testing.T) {
	t.Parallel()
	source := &fakeSource{}
	dir := t.TempDir()
	s := newStore(t, dir, source)
	_, err := s.Ensure(t.Context(), "nonesuch", nil)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(fault.HintOf(err), Default) {
		t.Errorf("got %v, hint %q", err, fault.HintOf(err))
	}
	for _, bad := range []string{"", ".", "..", "a/b", "A", "-x", strings.Repeat("a", 64)} {
		if _, err := s.Ensure(t.Context(), bad, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 || source.calls.Load() != 0 {
		t.Error("an unknown name made work")
	}
}

func TestEnsureHealsAndCleansUp(t *testing.T) {
	t.Parallel()
	dir, source := t.TempDir(), &fakeSource{fail: errors.New("no network")}
	s := newStore(t, dir, source)
	if _, err := s.Ensure(t.Context(), Default, nil); !errors.Is(err, source.fail) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kernels", Default)); !os.IsNotExist(err) {
		t.Error("a failed kernel was published")
	}
	source.fail = nil
	k, err := s.Ensure(t.Context(), Default, nil)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func() error{
		"no image":       func() error { return os.Remove(k.ImagePath) },
		"empty manifest": func() error { return os.WriteFile(filepath.Join(k.dir, manifestFile), nil, 0o600) },
		"old format":     func() error { return os.WriteFile(filepath.Join(k.dir, manifestFile), []byte(`{"format":0}`), 0o600) },
	}
	for name, damage := range damages {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		// What a killed process left must not be in the way.
		if err := os.MkdirAll(filepath.Join(dir, "kernels", ".work", Default, "out"), 0o700); err != nil {
			t.Fatal(err)
		}
		healed, err := s.Ensure(t.Context(), Default, nil)
		if err != nil || healed.Digest != k.Digest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnsureNeedsItsModules(t *testing.T) {
	t.Parallel()
	s := newStore(t, t.TempDir(), &fakeSource{left: "virtio_blk"})
	k, err := s.Ensure(t.Context(), Default, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.BootPath(k, "qemu")
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "no virtio-blk (CONFIG_VIRTIO_BLK)") {
		t.Errorf("got %v", err)
	}
	s = newStore(t, t.TempDir(), &fakeSource{}) // the control
	if k, err = s.Ensure(t.Context(), Default, nil); err != nil {
		t.Fatal(err)
	}
	if path, err := s.BootPath(k, "qemu"); err != nil || path != k.ImagePath {
		t.Errorf("%q, %v: without a PVH entry it is the bzImage", path, err)
	}
	if path, err := s.BootPath(k, "another"); err != nil || path == "" {
		t.Errorf("%q, %v", path, err)
	}
}

func TestEnsureTogether(t *testing.T) {
	t.Parallel()
	dir, source := t.TempDir(), &fakeSource{block: make(chan struct{})}
	stores := []*Store{newStore(t, dir, source), newStore(t, dir, source)}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, err := stores[i%2].Ensure(t.Context(), Default, nil); err != nil {
				t.Error(err)
			}
		})
	}
	time.AfterFunc(20*time.Millisecond, func() { close(source.block) })
	wg.Wait()
	if source.calls.Load() != 1 {
		t.Errorf("fetched %d times", source.calls.Load())
	}
}

func TestInitramfs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newStore(t, dir, &fakeSource{})
	k, err := s.Ensure(t.Context(), Default, nil)
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(dir, "agent")
	write := func(text string) {
		if err := errors.Join(os.WriteFile(agent+".new", []byte("\x7fELF"+text), 0o755), os.Rename(agent+".new", agent)); err != nil {
			t.Fatal(err)
		}
	}
	get := func() string {
		path, err := s.Initramfs(t.Context(), k, agent)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("one")
	first := get()
	data, _ := os.ReadFile(first)
	if !bytes.Contains(data, []byte("\x7fELFone")) || !bytes.Contains(data, []byte("module virtio_blk")) ||
		!bytes.Contains(data, []byte("/banger/modules/overlay.ko\n")) || bytes.Contains(data, []byte("not needed")) {
		t.Error("bad content")
	}
	if get() != first {
		t.Error("made twice")
	}
	write("two")
	second := get()
	if second == first {
		t.Error("another agent got the same initramfs")
	}
	if err := os.Truncate(second, 0); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(get()); err != nil || st.Size() == 0 {
		t.Error("an empty archive was not made anew")
	}
	old := time.Now().Add(-2 * unusedFor)
	if err := os.Chtimes(first, old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first); !os.IsNotExist(err) {
		t.Error("the unused archive is still there")
	}
	if _, err := os.Stat(second); err != nil {
		t.Error("the used archive is gone")
	}
	if _, err := s.Initramfs(t.Context(), k, filepath.Join(dir, "none")); err == nil {
		t.Error("no agent, no error")
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s := newStore(t, t.TempDir(), &fakeSource{})
	if err := s.Delete(t.Context(), Default); !fault.Is(err, fault.NotFound) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := s.Ensure(t.Context(), Default, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), Default); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(Default); !fault.Is(err, fault.NotFound) {
		t.Errorf("after delete: %v", err)
	}
}
