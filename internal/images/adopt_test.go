package images

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/fault"
	"banger/internal/rootfs"
	"banger/internal/store"
)

// register makes a registered image of a file with a hole in it.
func register(t *testing.T, s *Store, name string) Image {
	t.Helper()
	data, err := os.ReadFile(ensure(t, s).RootPath)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name+".ext4")
	if err := os.WriteFile(file, append(data, "the end"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, int64(len(data))+(32<<20)+5); err != nil {
		t.Fatal(err)
	}
	img, err := s.Register(t.Context(), RegisterRequest{Name: name, Root: file, Kernel: "own"}, nil)
	if err != nil || !img.Registered || img.Kernel != "own" {
		t.Fatalf("%+v, %v", img, err)
	}
	return img
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	used := &inUse{}
	s := newPuller(t, &fakeSources{}, used)
	was := register(t, s, "mine")
	used.vms = []store.ImageUser{{VM: "box", Image: "mine", Digest: was.Digest}}
	img, err := s.Adopt(t.Context(), was, nil)
	if err != nil || img.Registered || img.RootPath == was.RootPath || img.Kernel != "own" || img.Source != was.Source {
		t.Fatalf("%+v, %v", img, err)
	}
	if err := os.Remove(was.RootPath); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(img.RootPath)
	if err != nil || info.Mode().Perm() != 0o444 || allocated(info) > was.Size-(16<<20) {
		t.Errorf("the copy: %+v, %v", info, err)
	}
	if got, err := rootfs.HashFile(t.Context(), img.RootPath); err != nil || got != was.Digest {
		t.Errorf("the copy has %s, %v", got, err)
	}
	if got, err := s.ByDigest(was.Digest); err != nil || got.RootPath != img.RootPath {
		t.Errorf("what the VM has: %+v, %v", got, err)
	}
	if _, err := s.Adopt(t.Context(), was, nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("again: %v", err)
	}
	if _, err := s.Adopt(t.Context(), Image{Digest: "sha256:" + hexSum(nil)}, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("no image: %v", err)
	}
	if left, err := s.Leftovers(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// A file that was changed and says that it was not, and one that is given up, leave the registration as it is.
func TestAdoptFails(t *testing.T) {
	t.Parallel()
	s := newPuller(t, &fakeSources{}, &inUse{})
	was := register(t, s, "mine")
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := s.Adopt(ctx, was, nil); !errors.Is(err, gone) {
		t.Errorf("given up: %v", err)
	}
	info, err := os.Stat(was.RootPath)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(was.RootPath, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{1}, was.Size-1)
	if err := errors.Join(err, f.Close(), os.Chtimes(was.RootPath, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Adopt(t.Context(), Image{Digest: was.Digest}, nil); !fault.Is(err, fault.Precondition) || fault.HintOf(err) == "" {
		t.Errorf("changed: %v", err)
	}
	if img, err := s.Get("mine"); err != nil || !img.Registered {
		t.Errorf("%+v, %v", img, err)
	}
	if left, err := s.Leftovers(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestCopySparse(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 64 << 10, 64<<10 + 1, 3 << 20} {
		for _, fill := range []byte{0, 7} {
			data := bytes.Repeat([]byte{fill}, size)
			f, err := os.Create(filepath.Join(t.TempDir(), "copy"))
			if err != nil {
				t.Fatal(err)
			}
			digest, n, err := copySparse(t.Context(), f, bytes.NewReader(data), func(int64) {})
			if err := errors.Join(err, f.Close()); err != nil || n != int64(size) || digest != "sha256:"+hexSum(data) {
				t.Errorf("%d bytes: %d, %s, %v", size, n, digest, err)
			}
			if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes: the copy differs, %v", size, err)
			}
		}
	}
}

func TestRoom(t *testing.T) {
	t.Parallel()
	s := newPuller(t, &fakeSources{}, &inUse{})
	base := ensure(t, s)
	need, err := Promotion{}.room(base)
	if err != nil || need <= spareSpace {
		t.Errorf("%d, %v", need, err)
	}
	if more, err := (Promotion{Work: base.RootPath}).room(base); err != nil || more <= need {
		t.Errorf("with a home: %d, %v", more, err)
	}
	if err := checkSpace(t.TempDir(), math.MaxInt64); !fault.Is(err, fault.Exhausted) || fault.HintOf(err) == "" {
		t.Errorf("no room: %v", err)
	}
}
