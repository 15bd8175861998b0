//go:build vm

package kernels

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/hostexec"
)

// TestImportDebianPackage imports a kernel package as apt gives it, and the kernel in it alone.
func TestImportDebianPackage(t *testing.T) {
	t.Parallel()
	if _, err := hostexec.Look("apt-get", "apt"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	depends, err := exec.Command("apt-cache", "depends", "linux-image-cloud-amd64").Output()
	name := ""
	for word := range strings.FieldsSeq(string(depends)) {
		if strings.HasPrefix(word, "linux-image-") && strings.HasSuffix(word, "-cloud-amd64") && word != "linux-image-cloud-amd64" {
			name = word
		}
	}
	if err != nil || name == "" {
		t.Skip("this host's apt knows no linux-image-cloud-amd64")
	}
	get := exec.Command("apt-get", "download", name)
	get.Dir = dir
	if out, err := get.CombinedOutput(); err != nil {
		t.Skipf("download %s: %v: %s", name, err, out)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	s := New(Config{Dir: filepath.Join(dir, "kernels"), CacheDir: filepath.Join(dir, "cache"), Source: &fakeSource{}})
	began := time.Now()
	k, err := s.Import(t.Context(), "deb", files, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("imported in %v: %+v", time.Since(began), k)
	if path, err := s.BootPath(k, "qemu"); err != nil || path != k.ELFPath || k.Release != strings.TrimPrefix(name, "linux-image-") {
		t.Errorf("%+v boots %q, %v", k, path, err)
	}
	if out, err := exec.Command("/sbin/e2fsck", "-fn", k.ModulesImage).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	alone, err := s.Import(t.Context(), "alone", []string{k.ELFPath}, nil)
	if err != nil || alone.Release != k.Release || alone.ModulesImage != "" {
		t.Errorf("the vmlinux alone: %+v, %v", alone, err)
	}
}
