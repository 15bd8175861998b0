package overlay

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/ext4"
	"banger/internal/fault"
)

func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path := filepath.Join(dir, name); exec.Command(path, "-V").Run() == nil {
			return path
		}
	}
	t.Skipf("%s is not installed (Debian package e2fsprogs)", name)
	return ""
}

// image makes a filesystem. A file's content is its value, names that end with a slash are directories; debugfs commands
// add what needs privilege.
func image(t *testing.T, files map[string]string, commands string) *ext4.FS {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else if err == nil {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "image")
	for _, c := range []struct {
		args  []string
		stdin string
	}{
		{[]string{tool(t, "mkfs.ext4"), "-q", "-F", "-d", dir, file, "8M"}, ""},
		{[]string{tool(t, "debugfs"), "-w", "-f", "-", file}, commands},
	} {
		cmd := exec.Command(c.args[0], c.args[1:]...)
		cmd.Stdin = strings.NewReader(c.stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.args, err, out)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	fsys, err := ext4.Open(f, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// list writes a root and returns what is in the archive.
func list(t *testing.T, root Root, o Options) map[string]string {
	t.Helper()
	var buf bytes.Buffer
	if err := WriteTar(t.Context(), &buf, root, o); err != nil {
		t.Fatal(err)
	}
	got, last := map[string]string{}, ""
	for r := tar.NewReader(&buf); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		switch h.Typeflag {
		case tar.TypeDir, tar.TypeReg:
		case tar.TypeChar:
			text = fmt.Sprintf("device %d:%d", h.Devmajor, h.Devminor)
		default:
			text = string(h.Typeflag) + " " + h.Linkname
		}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				text += " " + attr + "=" + h.PAXRecords[key]
			}
		}
		if _, twice := got[h.Name]; twice {
			t.Errorf("%q is there twice", h.Name)
		}
		if parent := filepath.Dir(strings.TrimSuffix(h.Name, "/")); h.Name != "./" && parent != "." && got[parent+"/"] == "" {
			if _, ok := got[parent+"/"]; !ok {
				t.Errorf("%q comes before its directory (%q)", h.Name, last)
			}
		}
		got[h.Name], last = text, h.Name
	}
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, text := range want {
		if have, ok := got[name]; !ok || have != text {
			t.Errorf("%q: got %q (%v), want %q", name, have, ok, text)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q should not be there", name)
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	base := image(t, map[string]string{
		"keep": "base", "change": "base", "delete": "x", "dir/below": "b", "dir/both": "b", "dir/gone": "b", "opaque/hidden": "h",
		"old/inside": "i", "plain/a": "a", "plain/b": "b", "meta": "content", "file-to-dir": "x", "dir-to-file/x": "x", "old2/x": "x",
	}, "")
	upper := image(t, map[string]string{
		"upper/change": "upper", "upper/new/file": "n", "upper/dir/above": "a", "upper/dir/both": "a", "upper/opaque/seen": "s",
		"upper/renamed/extra": "e", "upper/plain/c": "c", "upper/meta": "", "upper/file-to-dir/f": "f", "upper/dir-to-file": "f",
		"upper/sub/renamed2/": "", "upper/xwhite/h": "", "upper/xwhite/real": "", "work/": "", "upper/nested/": "",
	}, `cd /upper
mknod delete c 0 0
mknod old c 0 0
mknod old2 c 0 0
mknod null c 1 3
cd dir
mknod gone c 0 0
cd /
ea_set upper/opaque trusted.overlay.opaque y
ea_set upper/dir trusted.overlay.origin something
ea_set upper/renamed trusted.overlay.redirect old
ea_set upper/sub/renamed2 trusted.overlay.redirect /old2
ea_set upper/meta trusted.overlay.metacopy ""
ea_set upper/meta user.kept yes
ea_set upper/xwhite trusted.overlay.opaque x
ea_set upper/xwhite/h trusted.overlay.whiteout y
ea_set upper/nested trusted.overlay.overlay.opaque y
ea_set upper/nested user.overlay.opaque y
set_inode_field upper/meta size 7
`)
	got := list(t, Root{Base: base, Upper: upper, UpperDir: "upper"}, Options{})
	compare(t, got, map[string]string{
		"./": "", "keep": "base", "change": "upper", "dir/": "", "dir/below": "b", "dir/above": "a", "dir/both": "a",
		"opaque/": "", "opaque/seen": "s", "new/": "", "new/file": "n", "renamed/": "", "renamed/inside": "i", "renamed/extra": "e",
		"plain/": "", "plain/a": "a", "plain/b": "b", "plain/c": "c", "meta": "content user.kept=yes", "file-to-dir/": "",
		"file-to-dir/f": "f", "dir-to-file": "f", "sub/": "", "sub/renamed2/": "", "sub/renamed2/x": "x", "null": "device 1:3",
		"xwhite/": "", "xwhite/real": "", "nested/": " trusted.overlay.opaque=y user.overlay.opaque=y",
	})
}

func TestReplaced(t *testing.T) {
	t.Parallel()
	base := image(t, map[string]string{"etc/hostname": "image", "etc/hosts": "h", "root/.profile": "p", "etc/x": "x"}, "")
	upper := image(t, map[string]string{
		"up/etc/hostname": "machine", "up/etc/machine-id": "id", "up/etc/hosts": "a\nb\n", "up/etc/x": "changed",
	}, "")
	home := image(t, map[string]string{"mine": "m", "d/lost+found": "not that one"}, "ea_set / trusted.banger.seeded 1\n")
	root := Root{Base: base, Upper: upper, UpperDir: "up", Mounts: map[string]*ext4.FS{"root": home}}
	o := Options{
		Restore: []string{"etc/hostname", "etc/machine-id"},
		Rewrite: map[string]func([]byte) []byte{"etc/hosts": bytes.ToUpper, "etc/hostname": bytes.ToUpper},
	}
	compare(t, list(t, root, o), map[string]string{
		"./": "", "etc/": "", "etc/hostname": "image", "etc/hosts": "A\nB\n", "etc/x": "changed", "root/": "", "root/mine": "m",
		"root/d/": "", "root/d/lost+found": "not that one",
	})
	// Without changes, nothing is replaced.
	compare(t, list(t, Root{Base: base}, o), map[string]string{
		"./": "", "etc/": "", "etc/hostname": "image", "etc/hosts": "h", "etc/x": "x", "root/": "", "root/.profile": "p",
	})
}

func TestLinksAndOddFiles(t *testing.T) {
	t.Parallel()
	base := image(t, map[string]string{"z": "linked", "bad \xff": "name"}, "ln z a\nset_inode_field z links_count 2\n")
	upper := image(t, map[string]string{"up/f": "other"}, "ln up/f up/g\nset_inode_field up/f links_count 2\n")
	got := list(t, Root{Base: base, Upper: upper, UpperDir: "up"}, Options{})
	compare(t, got, map[string]string{"./": "", "a": "linked", "z": "1 a", "bad \xff": "name", "f": "other", "g": "1 f"})
}

func TestRefused(t *testing.T) {
	t.Parallel()
	base := image(t, map[string]string{"a/b": "12345"}, "")
	loop := image(t, map[string]string{"up/d/e/": ""}, "ln up/d up/d/e/loop\n")
	bare := image(t, map[string]string{"up/m": ""}, "ea_set up/m trusted.overlay.metacopy \"\"\n")
	away := image(t, map[string]string{"up/r/": ""}, "ea_set up/r trusted.overlay.redirect /../../etc\n")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		gone bool // the caller is
		root Root
		o    Options
		ok   func(error) bool
	}{
		{"entries", false, Root{Base: base}, Options{MaxEntries: 1}, func(err error) bool { return fault.Is(err, fault.Unsupported) }},
		{"bytes", false, Root{Base: base}, Options{MaxBytes: 4}, func(err error) bool { return fault.Is(err, fault.Unsupported) }},
		{"loop", false, Root{base, loop, "up", nil}, Options{}, func(err error) bool { return fault.Is(err, fault.Corrupt) }},
		{"no content", false, Root{base, bare, "up", nil}, Options{}, func(err error) bool { return fault.Is(err, fault.Corrupt) }},
		{"no upper", false, Root{base, bare, "none", nil}, Options{}, func(err error) bool { return fault.Is(err, fault.Corrupt) }},
		{"cancelled", true, Root{Base: base}, Options{}, func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"redirect", false, Root{base, away, "up", nil}, Options{}, func(err error) bool { return err == nil }}, // finds nothing
	}
	for _, tt := range tests {
		ctx := t.Context()
		if tt.gone {
			ctx = canceled
		}
		if err := WriteTar(ctx, io.Discard, tt.root, tt.o); !tt.ok(err) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}
