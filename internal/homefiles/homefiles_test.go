package homefiles_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/config"
	"banger/internal/homefiles"
)

// entries lists an archive: name, mode, and content or target.
func entries(t *testing.T, archive []byte) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %o %s%s", h.Name, h.Mode, content, h.Linkname))
	}
}

func write(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode)); err != nil {
		t.Fatal(err)
	}
}

func home(files ...config.FileSync) (c config.Home) {
	c.Files.Value = files
	return c
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	write(t, outside, "secret", 0o600)
	write(t, filepath.Join(dir, ".netrc"), "password", 0o644)
	write(t, filepath.Join(dir, "dots/vim/rc"), "set nu", 0o640)
	write(t, filepath.Join(dir, "real"), "linked", 0o600)
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "dots/out")), os.Symlink("real", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	var warnings []string
	archive, err := homefiles.New(home(
		config.FileSync{Host: "~/.netrc", Guest: ".netrc", Mode: 0o600},
		config.FileSync{Host: "~/link", Guest: "a/b"},
		config.FileSync{Host: "~/missing", Guest: "missing"},
		config.FileSync{Host: filepath.Join(dir, "dots"), Guest: ".config/dots"},
		config.FileSync{Host: "/dev/zero", Guest: "zero"},
	), dir).Files(t.Context(), func(w string) { warnings = append(warnings, w) })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		".config/dots/ 755 ", ".config/dots/out 777 " + outside, ".config/dots/vim/ 755 ", ".config/dots/vim/rc 640 set nu",
		".netrc 600 password", "a/b 600 linked",
	}
	if got := entries(t, archive); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if len(warnings) != 2 || !strings.HasPrefix(warnings[0], "~/missing is left out: no such file") || !strings.Contains(warnings[1], "/dev/zero") {
		t.Errorf("warnings %q", warnings)
	}
}

func TestFilesAreBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "small"), "x", 0o600)
	write(t, filepath.Join(dir, "large"), "", 0o600)
	if err := os.Truncate(filepath.Join(dir, "large"), 1<<40); err != nil {
		t.Fatal(err)
	}
	var warnings []string
	archive, err := homefiles.New(home(config.FileSync{Host: "~/large", Guest: "large"}, config.FileSync{Host: "~/small", Guest: "small"}), dir).
		Files(t.Context(), func(w string) { warnings = append(warnings, w) })
	if got := entries(t, archive); err != nil || len(got) != 1 || len(warnings) != 1 || !strings.Contains(warnings[0], "MiB") {
		t.Errorf("got %q, %q, %v", got, warnings, err)
	}
}

func TestNothing(t *testing.T) {
	t.Parallel()
	s := homefiles.New(home(), t.TempDir())
	defaults, err1 := s.Defaults(t.Context())
	files, err2 := s.Files(t.Context(), func(string) {})
	if err := errors.Join(err1, err2); err != nil || defaults != nil || files != nil {
		t.Errorf("got %q, %q, %v", defaults, files, err)
	}
}

func TestGitIdentity(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	const name, email = `Ann "the \ #1" O'Hara`, "ann@example.org"
	for key, value := range map[string]string{"name": name, "email": email, "signingkey": "private"} {
		cmd := exec.Command("git", "config", "--file", filepath.Join(dir, ".gitconfig"), "user."+key, value)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	on := config.Home{GitIdentity: config.Value[bool]{Value: true}}
	archive, err := homefiles.New(on, dir).Defaults(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := entries(t, archive)
	if len(got) != 1 || !strings.HasPrefix(got[0], ".config/git/config 644 ") || strings.Contains(got[0], "private") {
		t.Fatalf("got %q", got)
	}
	// git itself reads back what was written.
	copied := filepath.Join(dir, "copy")
	write(t, copied, strings.TrimPrefix(got[0], ".config/git/config 644 "), 0o600)
	for key, want := range map[string]string{"name": name, "email": email} {
		out, err := exec.Command("git", "config", "--file", copied, "user."+key).Output()
		if err != nil || strings.TrimSuffix(string(out), "\n") != want {
			t.Errorf("%s: %q, %v", key, out, err)
		}
	}
	if archive, err := homefiles.New(config.Home{}, dir).Defaults(t.Context()); err != nil || archive != nil {
		t.Errorf("turned off: %q, %v", archive, err)
	}
}
