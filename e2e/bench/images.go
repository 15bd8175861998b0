package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// What is imported and pulled.
const (
	filesPerMiB = 50_000.0 / 1024
	layers      = 10 // of the image that is pulled, which has half the size of the one that is imported
)

// importImage compares `image import` of a plain tar with `tar -x` of it to the same disk, turn by turn. The image is on
// stable storage when the import ends, so tar's files have to be too.
func importImage(ctx context.Context, b *bed, rounds, mib int) ([]figure, error) {
	const image = "bench-import"
	dir, err := os.MkdirTemp(b.dir, "import")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary
	archive := filepath.Join(dir, "root.tar")
	files := int(float64(mib) * filesPerMiB)
	if err := makeTar(archive, "lib", files, int64(mib)<<20); err != nil {
		return nil, err
	}
	var whole, floor, unpacked []time.Duration
	var peaks []int64
	for range max(1, rounds/3) { // each takes half a minute
		tarred, synced, err := unpack(ctx, archive, filepath.Join(dir, "unpacked"))
		if err != nil {
			return nil, err
		}
		unpacked, floor = append(unpacked, tarred), append(floor, synced)
		// A daemon that has done nothing yet, so that its peak is the import's.
		for _, args := range [][]string{{"daemon", "stop"}, {"ps"}} {
			if _, err := b.banger(ctx, args...); err != nil {
				return nil, err
			}
		}
		d, err := b.banger(ctx, "image", "import", archive, "--name", image)
		if err != nil {
			return nil, err
		}
		whole = append(whole, d)
		pid, err := b.daemonPid(ctx)
		if err != nil {
			return nil, err
		}
		peak, err := memory(pid, "VmHWM")
		if err != nil {
			return nil, err
		}
		peaks = append(peaks, peak)
		if err := b.forget(ctx, dir, image); err != nil {
			return nil, err
		}
	}
	const mostMemory = 200e6
	budget := median(floor) * 100 / 60
	return []figure{
		{
			fmt.Sprintf("image import, tar of %d MiB in %d files", mib, files),
			fmt.Sprintf("%s, %d %% of tar's speed", spread(whole), 100*median(floor)/median(whole)),
			fmt.Sprintf("tar -x and syncfs: %s, without syncfs %s", spread(floor), ms(median(unpacked))),
			"60 % of tar's speed = " + ms(budget), median(whole) <= budget,
		},
		bytesFigure("daemon that imports it, peak resident", slices.Max(peaks), mostMemory),
	}, nil
}

// unpack measures tar -x, and the same until all is on stable storage, and removes what came out.
func unpack(ctx context.Context, archive, to string) (tarred, synced time.Duration, err error) {
	if err := os.Mkdir(to, 0o700); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(to), syncfs(filepath.Dir(to))) }()
	if err := syncfs(to); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if out, err := exec.CommandContext(ctx, "tar", "-xf", archive, "-C", to).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("tar: %w\n%s", err, out)
	}
	tarred = time.Since(began)
	if err := syncfs(to); err != nil {
		return 0, 0, err
	}
	return tarred, time.Since(began), nil
}

// pullImage compares `image pull` from a registry on loopback with `skopeo copy` to an OCI layout and `image import` of
// that, turn by turn. Nothing of the image is cached when a turn begins.
func pullImage(ctx context.Context, b *bed, rounds, mib int) ([]figure, error) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		return nil, skipped("skopeo, which is the floor, is not installed")
	}
	dir, err := os.MkdirTemp(b.dir, "pull")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary
	blobs := filepath.Join(dir, "registry")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return nil, err
	}
	server := httptest.NewServer(registry.New(
		registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)),
	))
	defer server.Close()
	image := strings.TrimPrefix(server.URL, "http://") + "/bench:v1"
	if err := pushLayers(ctx, image, dir, mib/2); err != nil {
		return nil, err
	}
	var whole, floor, copies, imports []time.Duration
	for range max(1, rounds/2) { // each takes a quarter of a minute
		copied, imported, err := b.copyAndImport(ctx, image, dir)
		if err != nil {
			return nil, err
		}
		copies, imports, floor = append(copies, copied), append(imports, imported), append(floor, copied+imported)
		d, err := b.banger(ctx, "image", "pull", image)
		if err != nil {
			return nil, err
		}
		whole = append(whole, d)
		if err := b.forget(ctx, dir, image); err != nil {
			return nil, err
		}
	}
	budget := median(floor) * 130 / 100
	return []figure{{
		fmt.Sprintf("image pull, %d layers, %d MiB", layers, mib/2), spread(whole),
		fmt.Sprintf("skopeo copy %s + import of the layout %s: %s", ms(median(copies)), ms(median(imports)), spread(floor)),
		"1.30 x floor = " + ms(budget), median(whole) <= budget,
	}}, nil
}

// copyAndImport measures how long skopeo takes to copy an image to a layout, and banger to import that.
func (b *bed) copyAndImport(ctx context.Context, image, dir string) (copied, imported time.Duration, err error) {
	const imports = "bench-layout"
	layout := filepath.Join(dir, "layout")
	cmd := exec.CommandContext(ctx, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://"+image, "oci:"+layout+":v1")
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("skopeo: %w\n%s", err, out)
	}
	copied = time.Since(began)
	if imported, err = b.banger(ctx, "image", "import", layout, "--name", imports); err != nil {
		return 0, 0, err
	}
	if err := os.RemoveAll(layout); err != nil {
		return 0, 0, err
	}
	return copied, imported, b.forget(ctx, dir, imports)
}

// forget removes an image and all that is cached of it, and waits until the disk of dir has nothing left to do.
func (b *bed) forget(ctx context.Context, dir, image string) error {
	for _, args := range [][]string{{"image", "delete", image}, {"image", "prune"}} {
		if _, err := b.banger(ctx, args...); err != nil {
			return err
		}
	}
	return syncfs(dir)
}

// pushLayers makes an image of several layers of the same size and pushes it.
func pushLayers(ctx context.Context, image, dir string, mib int) error {
	img := empty.Image
	for i := range layers {
		path := filepath.Join(dir, fmt.Sprintf("layer-%d.tar", i))
		if err := makeTar(path, fmt.Sprintf("layer-%d", i), int(float64(mib)*filesPerMiB)/layers, int64(mib)<<20/layers); err != nil {
			return err
		}
		layer, err := tarball.LayerFromFile(path)
		if err != nil {
			return err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return err
		}
	}
	about, err := img.ConfigFile()
	if err != nil {
		return err
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: about.RootFS})
	if err != nil {
		return err
	}
	ref, err := name.ParseReference(image, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx))
}

// makeTar writes an archive of files in usr/folder with the sizes of a root filesystem's: many small ones, and one in a
// thousand large, which have half of the bytes. Every other file is random, the others are text.
func makeTar(path, folder string, files int, total int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Sync(), f.Close()) }()
	const oneIn = 1000
	small := max(1, total/2/int64(files))
	large := total / 2 / int64((files+oneIn-1)/oneIn)
	pool := max(64<<20, 2*large)
	random := make([]byte, pool)
	if _, err := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", folder)))).Read(random); err != nil {
		return err
	}
	var text bytes.Buffer
	for i := 0; int64(text.Len()) < pool; i++ {
		_, _ = fmt.Fprintf(&text, "line %d of %s is like all the others\n", i, folder)
	}
	tw := tar.NewWriter(f)
	for i := range files {
		size, content := small/2+int64(i)%small, random
		if i%oneIn == 0 {
			size = large
		}
		if (i+i/oneIn)%2 == 1 { // of the large ones, too
			content = text.Bytes()
		}
		h := &tar.Header{
			Name:     fmt.Sprintf("usr/%s/package-%03d/part-%d/file-%05d", folder, i%500, i%7, i),
			Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(1700000000, 0),
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		at := int64(i) * 4099 % (pool - size)
		if _, err := io.Copy(tw, bytes.NewReader(content[at:at+size])); err != nil {
			return err
		}
	}
	return tw.Close()
}

// syncfs returns when all that was written to the filesystem of a directory is on stable storage.
func syncfs(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(d.Fd())))
}

// findImage returns how long the image was looked for, by what `run --timings` wrote. A millisecond and more is cut to whole
// ones there.
func findImage(timings string) (time.Duration, error) {
	for line := range strings.Lines(timings) {
		if rest, ok := strings.CutPrefix(line, "find image "); ok {
			return time.ParseDuration(strings.TrimSpace(rest))
		}
	}
	return 0, fmt.Errorf("no time for the image in:\n%s", timings)
}

// foundImage judges how long the runs of an image that is here looked for it.
func foundImage(found []time.Duration) figure {
	const budget = 5 * time.Millisecond
	return figure{
		"find image, of these runs", fmt.Sprintf("%.1f ms, at most %.1f ms", median(found).Seconds()*1e3, slices.Max(found).Seconds()*1e3),
		"", "< " + ms(budget), median(found) < budget,
	}
}
