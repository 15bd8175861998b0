package kernels

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/fault"
)

// elfKernel is the least that counts as an unpacked kernel.
func elfKernel() []byte {
	f := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 64-7)...)
	binary.LittleEndian.PutUint16(f[16:], 2)
	binary.LittleEndian.PutUint16(f[18:], 62)
	return append(f, "Linux version "+release+" (x) #1\x00"...)
}

func testImage() []byte { return bzImage(elfKernel()) }

// directory writes files, by name, to a new directory.
func directory(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// deb makes a Debian package with these headers and contents.
func deb(t *testing.T, entries []tar.Header, content string) string {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = w.Write([]byte(content))
		}
	}
	_ = w.Close()
	member := func(name string, data []byte) string {
		pad := strings.Repeat("\n", len(data)%2)
		return fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n%s%s", name, 0, 0, 0, "100644", len(data), data, pad)
	}
	dir := directory(t, map[string]string{
		"k.deb": "!<arch>\n" + member("debian-binary", []byte("2.0\n")) + member("data.tar", data.Bytes()),
	})
	return filepath.Join(dir, "k.deb")
}

func TestImport(t *testing.T) {
	t.Parallel()
	image, elf := string(testImage()), string(elfKernel())
	for _, tc := range []struct {
		name    string
		files   []string
		modules bool
		image   bool
	}{
		{"bzImage", []string{filepath.Join(directory(t, map[string]string{"any": image}), "any")}, false, true},
		{"vmlinux", []string{filepath.Join(directory(t, map[string]string{"any": elf}), "any")}, false, false},
		{"directory", []string{directory(t, map[string]string{
			"vmlinuz": image, "config": testConfig, "modules/kernel/a.ko": "x", "initrd.img": "not used",
		})}, true, true},
		{"like Fedora", []string{directory(t, map[string]string{
			"lib/modules/" + release + "/vmlinuz": image, "lib/modules/" + release + "/config": testConfig,
		}), directory(t, map[string]string{"usr/lib/modules/" + release + "/kernel/a.ko": "x"})}, true, true},
		{"package", []string{deb(t, []tar.Header{
			{Name: "./boot/", Typeflag: tar.TypeDir},
			{Name: "./boot/vmlinuz-" + release, Typeflag: tar.TypeReg},
			{Name: "./lib/modules/" + release + "/build", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
		}, image)}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := newStore(t, dir, &fakeSource{})
			k, err := s.Import(t.Context(), "mine", tc.files, nil)
			if err != nil {
				t.Fatal(err)
			}
			if k.Release != release || (k.ModulesImage != "") != tc.modules || (k.ImagePath != "") != tc.image || k.ELFPath == "" {
				t.Errorf("got %+v", k)
			}
			agent := filepath.Join(dir, "agent")
			if err := os.WriteFile(agent, []byte("\x7fELF"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Initramfs(t.Context(), k, agent); err != nil {
				t.Errorf("initramfs: %v", err)
			}
			if again, err := s.Import(t.Context(), "mine", tc.files, nil); err != nil || again.Digest != k.Digest {
				t.Errorf("again: %v", err)
			}
			if own, err := s.Import(t.Context(), "", tc.files, nil); err != nil || own.Name != release {
				t.Errorf("without a name: %q, %v", own.Name, err)
			}
		})
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	image := string(testImage())
	truncated := deb(t, []tar.Header{{Name: "boot/vmlinuz-" + release, Typeflag: tar.TypeReg}}, image)
	if err := os.Truncate(truncated, 600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file string
		want string
	}{
		"missing":       {"/nonexistent/kernel", "no file"},
		"device":        {"/dev/zero", "neither a file nor a directory"},
		"relative":      {"kernel", "not absolute"},
		"text":          {filepath.Join(directory(t, map[string]string{"x": "hello"}), "x"), "no kernel"},
		"empty":         {t.TempDir(), "no kernel in it"},
		"two kernels":   {directory(t, map[string]string{"vmlinuz": image, "boot/vmlinuz-2": image}), "two kernels"},
		"other modules": {directory(t, map[string]string{"vmlinuz": image, "modules/5.0/a.ko": "x"}), "other files are of kernel 5.0"},
		"truncated":     {truncated, "read package"},
		"traversal":     {deb(t, []tar.Header{{Name: "../../boot/vmlinuz", Typeflag: tar.TypeReg}}, image), "leads out"},
		"device node":   {deb(t, []tar.Header{{Name: "boot/vmlinuz-1", Typeflag: tar.TypeChar}}, ""), "no ordinary file"},
		"hard link":     {deb(t, []tar.Header{{Name: "boot/vmlinuz-1", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}}, ""), "hard link"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := newStore(t, dir, &fakeSource{})
			_, err := s.Import(t.Context(), "mine", []string{tc.file}, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) || fault.KindOf(err) == fault.Internal {
				t.Errorf("got %v", err)
			}
			if list, _ := s.List(); len(list) != 0 {
				t.Error("something was published")
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "kernels", ".work", "*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	s := newStore(t, t.TempDir(), &fakeSource{})
	for _, text := range []string{image, string(elfKernel())} {
		_, err := s.Import(t.Context(), "mine", []string{filepath.Join(directory(t, map[string]string{"k": text}), "k")}, nil)
		if text != image && !fault.Is(err, fault.Exists) {
			t.Errorf("another kernel under the same name: %v", err)
		}
	}
}

func TestDeleteRefusesWhatIsInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var asked atomic.Int32
	usedFrom := atomic.Int32{}
	s := New(Config{
		Dir: filepath.Join(dir, "kernels"), CacheDir: filepath.Join(dir, "cache"), Source: &fakeSource{},
		Users: func(context.Context, string) ([]string, error) {
			if asked.Add(1) >= usedFrom.Load() {
				return []string{"VM a", "VM b"}, nil
			}
			return nil, nil
		},
	})
	if _, err := s.Import(t.Context(), "mine", []string{directory(t, map[string]string{"vmlinuz": string(testImage())})}, nil); err != nil {
		t.Fatal(err)
	}
	// From the first question on, and as by a creation that comes in between.
	for _, from := range []int32{1, 2} {
		asked.Store(0)
		usedFrom.Store(from)
		err := s.Delete(t.Context(), "mine")
		if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "VM a, VM b") {
			t.Errorf("used from question %d on: %v", from, err)
		}
		if _, err := s.Ensure(t.Context(), "mine", nil); err != nil {
			t.Errorf("used from question %d on: it is gone: %v", from, err)
		}
	}
	usedFrom.Store(1 << 30)
	if err := s.Delete(t.Context(), "mine"); err != nil {
		t.Error(err)
	}
	if _, err := s.Ensure(t.Context(), "mine", nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func TestCatalogWithURL(t *testing.T) {
	t.Parallel()
	dir, content := t.TempDir(), testImage()
	sum := sha256.Sum256(content)
	var cut atomic.Bool
	var from atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from.Store(r.Header.Get("Range"))
		if cut.Swap(false) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:500])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "k", time.Time{}, bytes.NewReader(content))
	}))
	defer server.Close()
	entries, err := json.Marshal(map[string]recipe{
		"mine":  {Description: "x", Arch: "amd64", URL: server.URL + "/k", SHA256: hex.EncodeToString(sum[:])},
		"wrong": {Description: "x", Arch: "amd64", URL: server.URL + "/k", SHA256: strings.Repeat("0", 64)},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(directory(t, map[string]string{"c.json": string(entries)}), "c.json")
	s := New(Config{Dir: filepath.Join(dir, "kernels"), CacheDir: filepath.Join(dir, "cache"), Catalog: file, Source: &fakeSource{}})
	cut.Store(true)
	if _, err := s.Ensure(t.Context(), "mine", nil); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("a connection that broke: %v", err)
	}
	if k, err := s.Ensure(t.Context(), "mine", nil); err != nil || k.Release != release {
		t.Fatalf("got %+v, %v", k, err)
	}
	if got := from.Load(); got != "bytes=500-" {
		t.Errorf("it did not go on where it ended: %q", got)
	}
	if _, err := s.Ensure(t.Context(), "wrong", nil); !fault.Is(err, fault.Corrupt) {
		t.Errorf("another content: %v", err)
	}
	list, err := s.Catalog()
	if err != nil || len(list) != 4 {
		t.Errorf("catalogue %v, %v", list, err)
	}
}

func TestCatalogRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "[]", `{"A b": {"arch": "amd64", "suite": "x", "package": "y"}}`, `{"a": {"arch": "amd64"}}`,
		`{"a": {"arch": "amd64", "url": "file:///etc/passwd", "sha256": "` + strings.Repeat("0", 64) + `"}}`,
		`{"a": {"arch": "amd64", "url": "https://example.com/x", "sha256": "12"}}`,
	} {
		s := New(Config{
			Dir: t.TempDir(), CacheDir: t.TempDir(), Source: &fakeSource{},
			Catalog: filepath.Join(directory(t, map[string]string{"c.json": text}), "c.json"),
		})
		if _, err := s.Catalog(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestHalfAnImport: what a killed import left is no kernel, is in nobody's way, and goes away.
func TestHalfAnImport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	half := filepath.Join(dir, "kernels", ".work", importKey, "tree")
	if err := errors.Join(os.MkdirAll(half, 0o700), os.WriteFile(filepath.Join(half, "kernel"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, dir, &fakeSource{})
	if _, err := s.Import(t.Context(), "mine", []string{directory(t, map[string]string{"vmlinuz": string(testImage())})}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
