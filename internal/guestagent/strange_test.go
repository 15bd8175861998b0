package guestagent

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/guestlink"
)

// Roots are as they are: none of these may keep a guest from getting its name.
func TestHostnameInStrangeRoots(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(root string) error{
		"empty":     func(string) error { return nil },
		"etc links": func(root string) error { return os.Symlink("usr/etc", filepath.Join(root, "etc")) },
		"dangling": func(root string) error {
			return errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Symlink("no/where", filepath.Join(root, "etc/hosts")),
				os.Symlink("/run/no/where", filepath.Join(root, "etc/hostname")))
		},
		"loop": func(root string) error {
			return errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Symlink("hosts", filepath.Join(root, "etc/hosts")))
		},
		"directories": func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "etc/hosts"), 0o755), os.MkdirAll(filepath.Join(root, "etc/hostname"), 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			if err := prepare(root); err != nil {
				t.Fatal(err)
			}
			if err := writeHostname(root, "box"); err != nil {
				t.Fatal(err)
			}
			hosts, err1 := os.ReadFile(filepath.Join(root, "etc/hosts"))
			own, err2 := os.ReadFile(filepath.Join(root, "etc/hostname"))
			if err := errors.Join(err1, err2); err != nil || string(own) != "box\n" || !strings.Contains(string(hosts), "127.0.1.1\tbox\n") {
				t.Errorf("hostname %q, hosts %q, %v", own, hosts, err)
			}
		})
	}
}

func TestEnsureDir(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	path := func(name string) string { return filepath.Join(root, name) }
	if err := errors.Join(os.Mkdir(path("there"), 0o700), os.Symlink("to/nowhere", path("link")), os.Symlink("there", path("fine")),
		os.WriteFile(path("file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"new": 0o777 | os.ModeSticky, "there": 0o700, "link": 0o777 | os.ModeSticky, "fine": 0o700} {
		if err := ensureDir(path(name), 0o777|os.ModeSticky); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Stat(path(name)); err != nil || !info.IsDir() || info.Mode()&^os.ModeDir != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := ensureDir(path("file"), 0o755); err == nil {
		t.Error("a file is a directory")
	}
}

func TestKeepLeavesFilesAlone(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := func() *strings.Reader {
		return strings.NewReader(string(tarOf(t, map[string]string{"mine": "theirs", "new/file": "theirs"})))
	}
	if err := c.Put(t.Context(), dir, archive(), putKeep()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"mine": "mine", "new/file": "theirs"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if err := c.PutHome(t.Context(), archive(), putKeep()); err == nil {
		t.Error("a hosted agent wrote to a home that it does not have")
	}
}

func putKeep() guestlink.PutOptions { return guestlink.PutOptions{Keep: true} }

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
