package ext4

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// FuzzImage reads all there is in damaged images: whatever they say, that ends, and with nothing but the package's errors.
// Its input says which image is damaged and how: four bytes for each byte that is changed, its position and its value.
func FuzzImage(f *testing.F) {
	images := fuzzImages(f)
	for i := range images {
		f.Add(uint8(i), []byte{0, 4, 0x18, 2, 0, 4, 0x60, 0xFF, 0, 0x20, 8, 1})
	}
	f.Fuzz(func(t *testing.T, which uint8, damage []byte) {
		image := slices.Clone(images[int(which)%len(images)])
		for ; len(damage) >= 4; damage = damage[4:] {
			at := int(damage[0])<<16 | int(damage[1])<<8 | int(damage[2])
			image[at%len(image)] = damage[3]
		}
		if err := readAll(t, image); err != nil && !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Unsupported) &&
			!fault.Is(err, fault.Invalid) {
			t.Errorf("unexpected error %v", err)
		}
	})
}

// TestDamage is FuzzImage for a while, always with the same damage.
func TestDamage(t *testing.T) {
	t.Parallel()
	for i, whole := range fuzzImages(t) {
		if err := readAll(t, whole); err != nil {
			t.Fatalf("image %d: %v", i, err)
		}
		random := rand.New(rand.NewPCG(uint64(i), 0))
		found := 0
		for range 100 {
			image := slices.Clone(whole)
			for range 1 + random.IntN(8) {
				image[superblockAt+random.IntN(60_000)] = byte(random.IntN(256))
			}
			if err := readAll(t, image); err != nil {
				found++
			}
		}
		if found == 0 {
			t.Errorf("image %d: only %d of the damaged ones are refused", i, found)
		}
	}
}

// fuzzImages are small images. They have no checksums, so that damage gets further.
func fuzzImages(f testing.TB) (images [][]byte) {
	dir := f.TempDir()
	for name, content := range map[string][]byte{"small": []byte("x"), "large": bytes.Repeat([]byte("y"), 20_000)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			f.Fatal(err)
		}
		_ = unix.Setxattr(filepath.Join(dir, name), "user.attribute", content[:1], 0)
	}
	for i := range 40 {
		if err := os.MkdirAll(filepath.Join(dir, "d", "a directory with a long name", string(rune('a'+i))), 0o755); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink("small", filepath.Join(dir, "link")); err != nil {
		f.Fatal(err)
	}
	for _, args := range [][]string{
		{"-O", "^metadata_csum,^has_journal"},
		{"-O", "^extent,^64bit,^metadata_csum,^has_journal"},
		{"-O", "inline_data,^metadata_csum,^has_journal", "-I", "256"},
		{"-O", "meta_bg,^resize_inode,^metadata_csum,^has_journal"},
	} {
		image, err := os.ReadFile(mkfs(f, dir, "256K", append(args, "-b", "1024", "-N", "64")...))
		if err != nil {
			f.Fatal(err)
		}
		images = append(images, image)
	}
	journalled := mkfs(f, dir, "4M", "-O", "^metadata_csum", "-b", "1024", "-N", "64", "-J", "size=1")
	execute(f, "jo\njw -b 400,401 "+filepath.Join(dir, "large")+"\njw -r 401\njc\n", tool(f, "debugfs"), "-w", "-f", "-", journalled)
	image, err := os.ReadFile(journalled)
	if err != nil {
		f.Fatal(err)
	}
	return append(images, image)
}

var errEnough = errors.New("enough")

func readAll(t *testing.T, image []byte) error {
	f, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		return err
	}
	files := 0
	err = f.Walk(t.Context(), func(_ string, in *Inode) error {
		if files++; files > 10_000 {
			return errEnough
		}
		if _, err := f.Xattrs(in); err != nil {
			return err
		}
		switch in.Type() {
		case unix.S_IFREG:
			r, err := f.Open(in)
			if err != nil {
				return err
			}
			_, err = io.CopyN(io.Discard, r, 1<<20) // it may say that it is as large as it likes
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		case unix.S_IFLNK:
			_, err := f.Readlink(in)
			return err
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}
