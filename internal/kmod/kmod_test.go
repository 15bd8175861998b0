package kmod

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// moduleOf makes a module: an ELF file with the section .modinfo.
func moduleOf(info ...string) []byte {
	le := binary.LittleEndian
	data := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	f := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 64-7)...)
	le.PutUint16(f[16:], 1)  // relocatable
	le.PutUint16(f[18:], 62) // x86-64
	le.PutUint32(f[20:], 1)
	le.PutUint16(f[52:], 64)
	le.PutUint16(f[58:], 64)
	le.PutUint16(f[60:], 3)
	le.PutUint16(f[62:], 2)
	le.PutUint64(f[40:], uint64(64+len(data)+len(names)))
	f = append(append(f, data...), names...)
	section := func(name, kind uint32, offset, size int) {
		s := make([]byte, 64)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], uint64(offset))
		le.PutUint64(s[32:], uint64(size))
		f = append(f, s...)
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(data))
	section(10, 3, 64+len(data), len(names))
	return f
}

func write(t *testing.T, dir, name string, content []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// lookup finds the values of a name in a .bin file, as modprobe does without patterns.
func lookup(t *testing.T, file, key string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	if be.Uint32(data) != trieMagic || be.Uint32(data[4:]) != trieVersion {
		t.Fatalf("%s: bad header", file)
	}
	text := func(at uint32) (string, uint32) {
		n := bytes.IndexByte(data[at:], 0)
		return string(data[at:][:n]), at + uint32(n) + 1
	}
	for node := be.Uint32(data[8:]); node != 0; {
		at := node & 0x0fffffff
		if node&hasPrefix != 0 {
			var prefix string
			prefix, at = text(at)
			rest, ok := strings.CutPrefix(key, prefix)
			if !ok {
				return nil
			}
			key = rest
		}
		var child uint32
		if node&hasChildren != 0 {
			first, last := data[at], data[at+1]
			if key != "" && key[0] >= first && key[0] <= last {
				child = be.Uint32(data[at+2+4*uint32(key[0]-first):])
			}
			at += 2 + 4*(uint32(last)-uint32(first)+1)
		}
		if key == "" {
			var out []string
			if node&hasValues != 0 {
				count := be.Uint32(data[at:])
				at += 4
				for range count {
					var v string
					v, at = text(at + 4)
					out = append(out, v)
				}
			}
			return out
		}
		key, node = key[1:], child
	}
	return nil
}

func TestIndex(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var gz, x bytes.Buffer
	zw := gzip.NewWriter(&gz)
	_, _ = zw.Write(moduleOf("depends=c-c", "alias=pci:v0000-[a-b]*", "softdep=pre: c_c"))
	_ = zw.Close()
	xw, _ := xz.NewWriter(&x)
	_, _ = xw.Write(moduleOf("depends="))
	_ = xw.Close()
	zs, _ := zstd.NewWriter(nil)
	write(t, dir, "kernel/a.ko", moduleOf("license=GPL", "depends=b,c_c,built_in", "alias=fs-a"))
	write(t, dir, "kernel/b.ko.gz", gz.Bytes())
	write(t, dir, "kernel/c-c.ko.xz", x.Bytes())
	write(t, dir, "kernel/tun.ko.zst", zs.EncodeAll(moduleOf("alias=devname:net/tun", "alias=char-major-10-200"), nil))
	write(t, dir, "kernel/circle1.ko", moduleOf("depends=circle2"))
	write(t, dir, "kernel/circle2.ko", moduleOf("depends=circle1"))
	write(t, dir, "kernel/broken.ko", []byte("not a module"))
	write(t, dir, "kernel/bad name.ko", moduleOf())
	write(t, dir, "kernel/note.txt", nil)
	write(t, dir, "modules.builtin", []byte("kernel/fs/ext4/ext4.ko\nkernel/built-in.ko\n"))
	if n, err := Index(t.Context(), dir); n != 6 || err != nil {
		t.Fatalf("%d modules, %v", n, err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	dep := read("modules.dep")
	for _, line := range []string{
		"kernel/a.ko: kernel/b.ko.gz kernel/c-c.ko.xz\n", "kernel/b.ko.gz: kernel/c-c.ko.xz\n", "kernel/c-c.ko.xz:\n",
		"kernel/circle1.ko: kernel/circle2.ko\n",
	} {
		if !strings.Contains(dep, line) {
			t.Errorf("modules.dep lacks %q:\n%s", line, dep)
		}
	}
	if strings.Contains(dep, "bad name") || strings.Contains(dep, "broken") {
		t.Errorf("modules.dep:\n%s", dep)
	}
	if got := read("modules.devname"); !strings.Contains(got, "tun net/tun c10:200\n") {
		t.Errorf("modules.devname:\n%s", got)
	}
	if got := read("modules.softdep"); !strings.Contains(got, "softdep b pre: c_c\n") {
		t.Errorf("modules.softdep:\n%s", got)
	}
	for _, tc := range []struct{ file, key, want string }{
		{"modules.dep.bin", "a", "kernel/a.ko: kernel/b.ko.gz kernel/c-c.ko.xz"},
		{"modules.dep.bin", "c_c", "kernel/c-c.ko.xz:"},
		{"modules.alias.bin", "fs_a", "a"},
		{"modules.alias.bin", "pci:v0000_[a-b]*", "b"},
		{"modules.builtin.bin", "ext4", ""},
		{"modules.builtin.bin", "built_in", ""},
	} {
		if got := lookup(t, filepath.Join(dir, tc.file), tc.key); len(got) != 1 || got[0] != tc.want {
			t.Errorf("%s of %s: %q", tc.key, tc.file, got)
		}
	}
	for _, key := range []string{"", "c", "zzz", "circle"} {
		if got := lookup(t, filepath.Join(dir, "modules.dep.bin"), key); got != nil {
			t.Errorf("%q is found: %q", key, got)
		}
	}
}

func TestIndexNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if n, err := Index(t.Context(), dir); n != 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if got := lookup(t, filepath.Join(dir, "modules.dep.bin"), "a"); got != nil {
		t.Errorf("found %q", got)
	}
	if _, err := Index(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there was indexed")
	}
}

// TestLikeDepmod compares with the program, over the modules of a kernel that is installed here.
func TestLikeDepmod(t *testing.T) {
	t.Parallel()
	depmod, err := exec.LookPath("depmod")
	if err != nil {
		t.Skip("depmod is not installed")
	}
	root := os.Getenv("BANGER_TEST_MODULES") // a directory with lib/modules/<release>
	if root == "" {
		root = "/"
	}
	dirs, _ := filepath.Glob(filepath.Join(root, "lib/modules/*/kernel"))
	if len(dirs) == 0 {
		t.Skip("no modules are installed")
	}
	release := filepath.Base(filepath.Dir(dirs[0]))
	ours, theirs := filepath.Join(t.TempDir(), "lib/modules", release), filepath.Join(t.TempDir(), "lib/modules", release)
	for _, to := range []string{ours, theirs} {
		if err := os.CopyFS(to, os.DirFS(filepath.Dir(dirs[0]))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Index(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(depmod, "-b", strings.TrimSuffix(theirs, "/lib/modules/"+release), release).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, file := range []string{"modules.dep", "modules.alias", "modules.softdep", "modules.devname"} {
		lines := func(dir string) []string {
			text, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for line := range strings.Lines(string(text)) {
				words := strings.Fields(line)
				if strings.HasPrefix(line, "#") || len(words) == 0 {
					continue
				}
				if file == "modules.dep" {
					slices.Sort(words[1:]) // any order that is right will do
				}
				if file == "modules.alias" {
					words[1] = underscores(words[1])
				}
				out = append(out, strings.Join(words, " "))
			}
			slices.Sort(out)
			return slices.Compact(out)
		}
		a, b := lines(ours), lines(theirs)
		if slices.Equal(a, b) {
			continue
		}
		t.Errorf("%s differs: %d and %d lines", file, len(a), len(b))
		for _, l := range a {
			if _, ok := slices.BinarySearch(b, l); !ok {
				t.Logf("only ours: %.200s", l)
				break
			}
		}
		for _, l := range b {
			if _, ok := slices.BinarySearch(a, l); !ok {
				t.Logf("only depmod's: %.200s", l)
				break
			}
		}
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a.ko.gz", "a.ko.xz", "a.ko.zst"} {
		write(t, dir, name, []byte("nothing packed"))
		if _, err := Read(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	zs, _ := zstd.NewWriter(nil)
	write(t, dir, "bomb.ko.zst", zs.EncodeAll(make([]byte, maxModule+1), nil))
	if _, err := Read(filepath.Join(dir, "bomb.ko.zst")); err == nil {
		t.Error("a bomb was accepted")
	}
}

func FuzzModule(f *testing.F) {
	f.Add(moduleOf("depends=a,b", "alias=x", "softdep=pre: y", "alias=devname:net/tun", "alias=char-major-10-200"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parse("kernel/m.ko", data)
		if err != nil {
			return
		}
		x := index{modules: []*module{&m}, byName: map[string]*module{m.name: &m}}
		for name, content := range x.files("kernel/b.ko\n") {
			if !strings.HasSuffix(name, ".bin") && bytes.ContainsFunc(content, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }) {
				t.Errorf("%s holds %q", name, content)
			}
		}
	})
}
