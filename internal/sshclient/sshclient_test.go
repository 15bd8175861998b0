package sshclient

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const included = "/state dir/ssh/config"

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever was in the file is there, byte for byte, while the block is and when it has gone.
func TestInstallAndUninstall(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{
		"empty": "", "usual": "Host a\n  User b\n", "no newline at its end": "Host a\n  User b", "CRLF": "Host a\r\n  User b\r\n",
		"binary": "\x00\xff\n\n\n", "blank lines": "\n\n", "somebody's markers": "# BEGIN other\n# END banger-like\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(path, []byte(before), 0o640); err != nil { //nolint:gosec // to see it kept
				t.Fatal(err)
			}
			for i := range 3 {
				changed, err := Install(path, included)
				if err != nil || changed != (i == 0) {
					t.Fatalf("install %d: %v, %v", i, changed, err)
				}
			}
			text := read(t, path)
			if !strings.HasSuffix(text, before) || !strings.HasPrefix(text, blockBegin) || strings.Count(text, included) != 1 {
				t.Errorf("installed: %q", text)
			}
			if changed, err := Install(path, "/elsewhere"); err != nil || !changed || strings.Contains(read(t, path), included) {
				t.Errorf("installed anew: %v, %v", changed, err)
			}
			for i := range 2 {
				changed, err := Uninstall(path)
				if err != nil || changed != (i == 0) {
					t.Fatalf("uninstall %d: %v, %v", i, changed, err)
				}
			}
			if got := read(t, path); got != before {
				t.Errorf("uninstalled: %q, was %q", got, before)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode: %v, %v", info, err)
			}
		})
	}
}

// What comes after the block, and before it, is the user's.
func TestEditsAroundTheBlockStay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config")
	if _, err := Install(path, included); err != nil {
		t.Fatal(err)
	}
	text := "# first\n" + read(t, path) + "Host z\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Uninstall(path); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "# first\nHost z\n" {
		t.Errorf("left %q", got)
	}
}

func TestMissingFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), ".ssh", "config")
	if changed, err := Uninstall(path); changed || err != nil {
		t.Errorf("uninstall from nothing: %v, %v", changed, err)
	}
	for range 2 {
		if _, err := Install(path, included); err != nil {
			t.Fatal(err)
		}
	}
	for p, mode := range map[string]os.FileMode{filepath.Dir(path): 0o700, path: 0o600} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", p, info, err)
		}
	}
	if changed, err := Uninstall(path); !changed || err != nil {
		t.Errorf("uninstall: %v, %v", changed, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestSymbolicLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, target := filepath.Join(dir, "config"), filepath.Join(dir, "dotfiles")
	if err := os.Symlink("dotfiles", path); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(path, included); err == nil {
		t.Error("wrote through a link to nothing")
	}
	if err := os.WriteFile(target, []byte("Host a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(path, included); err != nil {
		t.Fatal(err)
	}
	if link, err := os.Readlink(path); err != nil || link != "dotfiles" || !strings.Contains(read(t, target), included) {
		t.Errorf("link %q, %v; target %q", link, err, read(t, target))
	}
}

func TestDamagedBlocks(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"no end": blockBegin + "Host a\n", "twice": blockBegin + blockEnd + blockBegin + blockEnd, "nested": blockBegin + blockBegin + blockEnd,
	} {
		path := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Install(path, included); err == nil {
			t.Errorf("%s: installed", name)
		}
		if _, err := Uninstall(path); err == nil || read(t, path) != text {
			t.Errorf("%s: %v, left %q", name, err, read(t, path))
		}
	}
}

// TestConfig has OpenSSH read it, whatever the paths are.
func TestConfig(t *testing.T) {
	t.Parallel()
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("no ssh")
	}
	for _, dir := range []string{"/plain", "/with space/100%/it's$HOME"} {
		s := Setup{Banger: dir + "/banger", Env: []string{"A=b c%"}, Identity: dir + "/id", KnownHosts: dir + "/known"}
		text, err := s.Config()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "c")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), ssh, "-G", "-F", path, "box.vm").Output()
		if err != nil {
			t.Fatal(err)
		}
		effective := strings.ReplaceAll(string(out), "%%", "%") // some it shows expanded
		for _, want := range []string{
			"user root\n", "stricthostkeychecking true\n", "identitiesonly yes\n", "userknownhostsfile " + dir + "/known\n",
			"identityfile " + dir + "/id\n", " ssh-proxy %h\n",
		} {
			if !strings.Contains(effective, want) {
				t.Errorf("%s: no %q in\n%s", dir, want, out)
			}
		}
		if out, err = exec.CommandContext(t.Context(), ssh, "-G", "-F", path, "box.example").Output(); err != nil || strings.Contains(string(out), "ssh-proxy") {
			t.Errorf("other hosts are concerned: %v\n%s", err, out)
		}
	}
	for _, path := range []string{"relative", "/quo\"te", "/line\nbreak"} {
		if _, err := (Setup{Banger: "/b", Identity: path, KnownHosts: "/k"}).Config(); err == nil {
			t.Errorf("took %q", path)
		}
	}
}
