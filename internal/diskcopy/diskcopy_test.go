package diskcopy_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"banger/internal/diskcopy"
	"banger/internal/fault"
)

// sparse makes a file of a size with texts at offsets.
func sparse(tb testing.TB, size int64, at map[int64][]byte) string {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "src"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // checked by what is read
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	for off, content := range at {
		if _, err := f.WriteAt(content, off); err != nil {
			tb.Fatal(err)
		}
	}
	return f.Name()
}

func allocated(tb testing.TB, path string) (size, bytes int64) {
	tb.Helper()
	info, err := os.Stat(path)
	if err != nil {
		tb.Fatal(err)
	}
	return info.Size(), info.Sys().(*syscall.Stat_t).Blocks * 512 //nolint:forcetypeassert // on Linux
}

func TestCloneKeepsContentSizeAndHoles(t *testing.T) {
	t.Parallel()
	random := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for name, c := range map[string]struct {
		size int64
		at   map[int64][]byte
	}{
		"empty":                {0, nil},
		"only a hole":          {64 << 20, nil},
		"an odd size":          {12345, map[int64][]byte{12340: []byte("12345")}},
		"data at both ends":    {64 << 20, map[int64][]byte{0: random, 64<<20 - 65536: random}},
		"holes between":        {64 << 20, map[int64][]byte{1 << 20: random, 20 << 20: random, 40<<20 + 17: []byte("x")}},
		"more than one piece":  {40 << 20, map[int64][]byte{0: bytes.Repeat(random, 600)}},
		"no hole, a short end": {65536 + 3, map[int64][]byte{0: random, 65536: []byte("end")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := sparse(t, c.size, c.at)
			dst := filepath.Join(t.TempDir(), "dst")
			if err := diskcopy.Clone(t.Context(), dst, src); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(src)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dst)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the copy differs (%d bytes, want %d; %v)", len(got), len(want), err)
			}
			if info, err := os.Stat(dst); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			_, before := allocated(t, src)
			if _, after := allocated(t, dst); after > before+1<<20 {
				t.Errorf("the copy takes %d bytes, the original %d", after, before)
			}
		})
	}
}

func TestCloneLeavesNothingOnFailure(t *testing.T) {
	t.Parallel()
	src := sparse(t, 64<<20, map[int64][]byte{0: make([]byte, 40<<20)})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		ctx  context.Context //nolint:containedctx // of a table
		src  string
		want fault.Kind
	}{
		"canceled":    {gone, src, fault.Canceled},
		"missing":     {t.Context(), filepath.Join(dir, "nothing"), fault.NotFound},
		"a directory": {t.Context(), dir, fault.Invalid},
	} {
		dst := filepath.Join(t.TempDir(), "dst")
		if err := diskcopy.Clone(c.ctx, dst, c.src); !fault.Is(err, c.want) {
			t.Errorf("%s: Clone() = %v, want a fault of kind %s", name, err, c.want)
		}
		if _, err := os.Lstat(dst); err == nil {
			t.Errorf("%s: something is left", name)
		}
	}
	dst := filepath.Join(dir, "there")
	if err := os.WriteFile(dst, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := diskcopy.Clone(t.Context(), dst, src); !fault.Is(err, fault.Exists) {
		t.Errorf("Clone over a file = %v", err)
	}
	if got, _ := os.ReadFile(dst); string(got) != "mine" {
		t.Errorf("the file that was there holds %q now", got)
	}
}

// To another file system the kernel may not copy by itself.
func TestCloneToAnotherFileSystem(t *testing.T) {
	t.Parallel()
	src := sparse(t, 20<<20, map[int64][]byte{4096: []byte("here"), 19 << 20: []byte("there")})
	dir, err := os.MkdirTemp("/dev/shm", "diskcopy") //nolint:usetesting // not where the others are
	if err != nil {
		t.Skip("no /dev/shm:", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	dst := filepath.Join(dir, "dst")
	if err := diskcopy.Clone(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(src)
	if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs (%v)", err)
	}
	if _, n := allocated(t, dst); n > 1<<20 {
		t.Errorf("the copy takes %d bytes", n)
	}
}

// BenchmarkClone is the disk of a VM that has little on it, and one with much.
func BenchmarkClone(b *testing.B) {
	for name, data := range map[string]int{"4GiB-10MB": 10, "4GiB-200MB": 200} {
		b.Run(name, func(b *testing.B) {
			at := map[int64][]byte{}
			for i := range data {
				at[int64(i)*(4<<30/int64(data))&^4095] = bytes.Repeat([]byte{byte(i + 1)}, 1<<20)
			}
			src := sparse(b, 4<<30, at)
			dst := filepath.Join(b.TempDir(), "dst")
			for b.Loop() {
				if err := diskcopy.Clone(b.Context(), dst, src); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = os.Remove(dst)
				b.StartTimer()
			}
		})
	}
}
