package kernels

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/initramfs"
	"banger/internal/progress"
	"banger/internal/rootfs"
)

// make builds a kernel's directory in work and publishes it by a rename.
func (s *Store) make(ctx context.Context, name string, r recipe, work string, sink progress.Sink) error {
	root, out := filepath.Join(work, "root"), filepath.Join(work, "out")
	for _, dir := range []string{out, filepath.Join(work, "fetch")} {
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // nothing secret
			return err
		}
	}
	fetched, err := s.source.Fetch(ctx, r.Suite, r.Package, filepath.Join(work, "fetch"), root, sink)
	if err != nil {
		return err
	}
	m := manifest{
		Format: format, Name: name, Files: map[string]string{}, Created: time.Now().UTC().Truncate(time.Second),
		Source: fetched.Source, Package: fetched.Package, Version: fetched.Version,
	}
	stage := "prepare kernel " + name
	sink.Send(progress.Update{Stage: stage, Detail: "unpack kernel"})
	if m.Release, err = takeBoot(root, out); err != nil {
		return err
	}
	if err := extractELF(filepath.Join(out, imageFile), filepath.Join(out, elfFile)); err != nil {
		// The bzImage boots as well, only later.
		s.log.Info("no unpacked kernel", "kernel", name, "err", err)
	}
	sink.Send(progress.Update{Stage: stage, Detail: "make image of modules"})
	if err := takeModules(ctx, filepath.Join(root, "lib", "modules", m.Release), out); err != nil {
		return err
	}
	if err := seal(ctx, out, &m); err != nil {
		return err
	}
	return publish(out, filepath.Join(s.dir, name), filepath.Join(work, "old"))
}

// takeBoot moves the kernel image and its configuration and returns the release.
func takeBoot(root, out string) (string, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return "", fault.New(fault.Corrupt, "the kernel package holds %d kernels", len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	err = errors.Join(
		os.Rename(images[0], filepath.Join(out, imageFile)),
		os.Rename(filepath.Join(root, "boot", "config-"+release), filepath.Join(out, configFile)),
	)
	if err != nil {
		return "", fmt.Errorf("take kernel from its package: %w", err)
	}
	return release, nil
}

// takeModules makes the image of all modules and keeps the few that the initramfs needs as files.
func takeModules(ctx context.Context, modules, out string) error {
	if err := packModules(ctx, modules, filepath.Join(out, modulesImage)); err != nil {
		return fmt.Errorf("make image of modules: %w", err)
	}
	files, err := initramfs.Resolve(modules, bootModules())
	if err != nil {
		return err
	}
	boot := filepath.Join(out, bootDir, filepath.Base(modules))
	files = append(files, "modules.dep")
	for _, optional := range []string{"modules.builtin", "modules.softdep"} {
		if _, err := os.Stat(filepath.Join(modules, optional)); err == nil {
			files = append(files, optional)
		}
	}
	for _, file := range files {
		to := filepath.Join(boot, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // nothing secret
			return err
		}
		if err := os.Rename(filepath.Join(modules, file), to); err != nil {
			return fmt.Errorf("keep module: %w", err)
		}
	}
	return nil
}

// packModules makes a filesystem image of a modules directory. Everything in it belongs to root.
func packModules(ctx context.Context, modules, image string) error {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(tarTree(modules, pw))
	}()
	_, err := rootfs.Convert(ctx, pr, image, rootfs.Options{})
	pr.CloseWithError(io.ErrClosedPipe)
	<-done
	return err
}

func tarTree(dir string, w io.Writer) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		// Times would make every image another one.
		h := &tar.Header{Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		switch {
		case d.IsDir():
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
			return tw.WriteHeader(h)
		case !d.Type().IsRegular():
			return nil // "build" and "source" point into packages that are not there
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, info.Size()
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // read only
		_, err = io.Copy(tw, f)
		return err
	})
	return errors.Join(err, tw.Close())
}

// seal hashes the files and writes the manifest, last.
func seal(ctx context.Context, out string, m *manifest) error {
	for _, file := range []string{imageFile, elfFile, configFile, modulesImage} {
		digest, err := rootfs.HashFile(ctx, filepath.Join(out, file))
		if errors.Is(err, fs.ErrNotExist) && file == elfFile {
			continue
		}
		if err != nil {
			return fmt.Errorf("hash kernel: %w", err)
		}
		m.Files[file] = digest
		if err := errors.Join(os.Chmod(filepath.Join(out, file), 0o444), syncPath(filepath.Join(out, file))); err != nil {
			return fmt.Errorf("store kernel: %w", err)
		}
	}
	h := sha256.New()
	for _, file := range slices.Sorted(maps.Keys(m.Files)) {
		_, _ = fmt.Fprintf(h, "%s %s\n", file, m.Files[file])
	}
	m.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(out, manifestFile)
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil { //nolint:gosec // nothing secret
		return err
	}
	return errors.Join(syncPath(path), syncPath(out))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// publish puts the finished directory in place. One that is in the way is damaged or of another format, or it would have
// been used.
func publish(from, to, aside string) error {
	if err := os.Rename(to, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace kernel: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("publish kernel: %w", err)
	}
	return syncPath(filepath.Dir(to))
}
