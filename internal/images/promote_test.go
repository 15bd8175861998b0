package images

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"banger/internal/fault"
	"banger/internal/rootfs"
)

func TestPromote(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
		t.Skip("mkfs.ext4 is not installed (Debian package e2fsprogs)")
	}
	dir := t.TempDir()
	s := newStore(t, dir, &fakeBuilder{}, nil)
	base := ensure(t, s)
	p := Promotion{VM: "box", Digest: base.Digest, System: filepath.Join(dir, "system"), Work: filepath.Join(dir, "work")}
	for _, disk := range []string{p.System, p.Work} { // of a VM that has never been started
		if err := rootfs.Blank(t.Context(), disk, 16<<20, rootfs.BlankOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	img, err := s.Promote(t.Context(), "made", p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.Name != "made" || img.Source != "vm:box" || !img.HasSystemd || img.Digest == "" {
		t.Errorf("got %+v", img)
	}
	for name, kind := range map[string]fault.Kind{"made": fault.Exists, Default: fault.Exists, "": fault.Invalid} {
		if _, err := s.Promote(t.Context(), name, p, nil); !fault.Is(err, kind) {
			t.Errorf("%q: got %v", name, err)
		}
	}
	p.Digest = "sha256:" + string(bytes.Repeat([]byte("0"), 64))
	if _, err := s.Promote(t.Context(), "other", p, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("no base: %v", err)
	}
	p.Digest, p.System = base.Digest, filepath.Join(dir, "none")
	if _, err := s.Promote(t.Context(), "other", p, nil); err == nil {
		t.Error("promoted without a disk")
	}

	var first, second bytes.Buffer
	one, err := s.Export(t.Context(), "made", "", &first, nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.Export(t.Context(), "made", "oci", &second, nil)
	if err != nil || one != two || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("the same image gives %s and %s, %v", one, two, err)
	}
	if _, err := s.Export(t.Context(), "nosuch", "", &first, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("no image: %v", err)
	}
}

func TestWithoutOwnName(t *testing.T) {
	t.Parallel()
	got := withoutOwnName([]byte("127.0.0.1 localhost\n127.0.1.1\tbox\n\n# 127.0.1.1 kept\n10.0.0.1 peer"))
	if want := "127.0.0.1 localhost\n\n# 127.0.1.1 kept\n10.0.0.1 peer"; string(got) != want {
		t.Errorf("got %q", got)
	}
}
