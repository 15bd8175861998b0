package rootfs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/oci"
	"banger/internal/rootfs"
)

// BenchmarkImport makes an image from a root filesystem of 1 GiB in 50,000 files, as `banger image import` does, and says
// how long tar takes to unpack the same archive to the same disk, and how long until that is on stable storage, as the image is.
//
//	go test ./internal/rootfs -run '^$' -bench Import -benchtime 3x
func BenchmarkImport(b *testing.B) {
	if _, err := exec.LookPath("tar"); err != nil {
		b.Skip(err)
	}
	dir := b.TempDir()
	archive := filepath.Join(dir, "root.tar")
	if err := makeRoot(archive, 50000, 1<<30); err != nil {
		b.Fatal(err)
	}
	var ours, tars, synced time.Duration
	for b.Loop() {
		began := time.Now()
		if err := unpack(b.Context(), archive, filepath.Join(dir, "unpacked")); err != nil {
			b.Fatal(err)
		}
		tars += time.Since(began)
		syscall.Sync()
		synced += time.Since(began)
		if err := os.RemoveAll(filepath.Join(dir, "unpacked")); err != nil {
			b.Fatal(err)
		}
		syscall.Sync()
		began = time.Now()
		image := filepath.Join(dir, "image.ext4")
		if err := importRoot(b.Context(), archive, image, dir); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(began)
		if err := os.Remove(image); err != nil {
			b.Fatal(err)
		}
		syscall.Sync()
	}
	b.ReportMetric(ours.Seconds()/float64(b.N), "import-s")
	b.ReportMetric(tars.Seconds()/float64(b.N), "tar-s")
	b.ReportMetric(synced.Seconds()/float64(b.N), "tar+sync-s")
	b.ReportMetric(100*tars.Seconds()/ours.Seconds(), "%speed")
	b.ReportMetric(float64(peak(b)>>20), "peak-MiB")
}

// peak returns the largest resident set that this process has had, in bytes.
func peak(b *testing.B) int64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib << 10
}

func unpack(ctx context.Context, archive, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return exec.CommandContext(ctx, "tar", "-xf", archive, "-C", to).Run()
}

func importRoot(ctx context.Context, archive, image, cache string) error {
	s, err := oci.New(oci.Options{CacheDir: cache}).OpenArchive(ctx, archive, "")
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(s.WriteTar(ctx, w, nil)) }()
	_, err = rootfs.Convert(ctx, r, image, rootfs.Options{})
	r.CloseWithError(io.ErrClosedPipe)
	return errors.Join(err, s.Close())
}

// makeRoot writes an archive of files that have the sizes of a root filesystem's: many small ones, a few large ones.
func makeRoot(path string, files int, total int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(f)
	random := make([]byte, 64<<20)
	if _, err := rand.NewChaCha8([32]byte{}).Read(random); err != nil {
		return err
	}
	small := total / 2 / int64(files)
	large := total / 2 / 50
	for i := range files {
		size := small/2 + int64(i)%small
		if i%(files/50) == 0 {
			size = large
		}
		name := fmt.Sprintf("usr/lib/package-%03d/part-%d/file-%05d", i%500, i%7, i)
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(1700000000, 0)}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		at := int64(i) * 4099 % (int64(len(random)) - size)
		if _, err := io.Copy(tw, bytes.NewReader(random[at:at+size])); err != nil {
			return err
		}
	}
	return errors.Join(tw.Close(), f.Sync(), f.Close())
}
