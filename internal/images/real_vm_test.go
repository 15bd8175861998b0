//go:build vm

package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/hostexec"
	"banger/internal/progress"
)

// TestBuildDebian builds the real image and looks into it. It needs the Debian archive.
func TestBuildDebian(t *testing.T) {
	if _, err := hostexec.Look("mmdebstrap", "mmdebstrap"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if keep := os.Getenv("BANGER_TEST_KEEP"); keep != "" {
		dir = keep
	}
	s := New(Config{Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache")})
	began := time.Now()
	last := ""
	img, err := s.Ensure(t.Context(), Default, func(u progress.Update) {
		if line := u.Stage + ": " + u.Detail; line != last && !strings.HasPrefix(u.Detail, "unpack") && !strings.HasPrefix(u.Detail, "set up") {
			last = line
			t.Logf("%6.2f %s (%d/%d) %v %s", time.Since(began).Seconds(), line, u.Current, u.Total, u.Ended, u.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	used, _ := s.Usage()
	t.Logf("%+v, %d bytes on the disk", img, used)
	if !img.HasSystemd {
		t.Error("no systemd found")
	}
	if out, err := exec.Command("/sbin/e2fsck", "-fn", img.RootPath).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for path, want := range map[string]string{
		"/etc/default/locale": "LANG=C.UTF-8", "/etc/apt/sources.list": "signed-by=", "/etc/passwd": "root:x:0:0:",
		"/etc/shadow": "root:*:",
	} {
		out, err := exec.Command("/sbin/debugfs", "-R", "cat "+path, img.RootPath).Output()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s holds %q, %v", path, out, err)
		}
	}
	again := time.Now()
	if _, err := s.Ensure(t.Context(), Default, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("second Ensure: %v", time.Since(again))
}
