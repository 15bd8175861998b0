//go:build vm

package kernels

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/hostexec"
	"banger/internal/progress"
)

// TestMakeDebianKernel makes the real kernel and looks into it. It needs the Debian archive.
func TestMakeDebianKernel(t *testing.T) {
	if _, err := hostexec.Look("apt-get", "apt"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	if keep := os.Getenv("BANGER_TEST_KEEP"); keep != "" {
		dir = keep
	}
	s := New(Config{Dir: filepath.Join(dir, "kernels"), CacheDir: filepath.Join(dir, "cache")})
	began := time.Now()
	k, err := s.Ensure(t.Context(), Default, func(u progress.Update) {
		t.Logf("%6.2f %s: %s %v %s", time.Since(began).Seconds(), u.Stage, u.Detail, u.Ended, u.Err)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", k)
	if k.ELFPath == "" {
		t.Error("the kernel was not unpacked")
	}
	if out, err := exec.Command("/sbin/e2fsck", "-fn", k.ModulesImage).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	agent, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again := time.Now()
		path, err := s.Initramfs(t.Context(), k, agent)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s in %v", path, time.Since(again))
	}
}
