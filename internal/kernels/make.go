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
	"banger/internal/kernelimage"
	"banger/internal/kmod"
	"banger/internal/progress"
	"banger/internal/rootfs"
)

// make builds a kernel of the catalogue in work and publishes it by a rename.
func (s *Store) make(ctx context.Context, name string, r recipe, work string, sink progress.Sink) error {
	fetched, fetch := Fetched{}, filepath.Join(work, "fetch")
	t, err := newTree(filepath.Join(work, "tree"))
	if err != nil {
		return err
	}
	defer t.root.Close()                           //nolint:errcheck // a directory
	if err := os.Mkdir(fetch, 0o755); err != nil { // nothing secret
		return err
	}
	if r.URL != "" {
		file, err := s.download(ctx, r, sink)
		if err == nil {
			err = t.add(ctx, file)
		}
		if err != nil {
			return err
		}
		fetched = Fetched{Source: r.URL, Package: strings.Join(t.names, " "), Version: t.version}
	} else {
		root := filepath.Join(work, "root")
		if fetched, err = s.source.Fetch(ctx, r.Suite, r.Package, fetch, root, sink); err != nil {
			return err
		}
		if err := t.add(ctx, root); err != nil {
			return err
		}
	}
	m := manifest{
		Format: format, Name: name, Files: map[string]string{}, Created: time.Now().UTC().Truncate(time.Second),
		Source: fetched.Source, Package: fetched.Package, Version: fetched.Version,
	}
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil { // nothing secret
		return err
	}
	stage := "prepare kernel " + name
	if err := s.assemble(ctx, t, out, &m, func(detail string) { sink.Send(progress.Update{Stage: stage, Detail: detail}) }); err != nil {
		return err
	}
	return publish(out, filepath.Join(s.dir, name), filepath.Join(work, "old"))
}

// assemble makes the directory of a kernel, out, of what was gathered, and completes its record. A record without a name
// gets the release as its name.
func (s *Store) assemble(ctx context.Context, t *tree, out string, m *manifest, tell func(detail string)) error {
	tell("unpack kernel")
	if len(t.kernels) == 0 {
		return fault.New(fault.Invalid, "there is no kernel in it").
			WithHint("looked for boot/vmlinuz-RELEASE, lib/modules/RELEASE/vmlinuz, vmlinuz and vmlinux")
	}
	modules, release, err := t.modules()
	if err != nil {
		return err
	}
	for kind, label := range t.kernels {
		own, err := releaseOf(kind, filepath.Join(t.dir, string(kind)))
		switch {
		case err != nil:
			return err
		case release == "" || release == noRelease:
			release = own
		case own != "" && own != release:
			return fault.New(fault.Invalid, "%s is kernel %s, but other files are of kernel %s", label, own, release).
				WithHint("give the files of one kernel")
		}
	}
	if release == "" || release == noRelease {
		return fault.New(fault.Invalid, "the kernel doesn't tell its release").
			WithHint("put its modules into a directory with their release as its name: modules/RELEASE")
	}
	if m.Release = release; m.Name == "" {
		if err := validateName(release); err != nil {
			return fault.New(fault.Invalid, "the release %s can't be the kernel's name", release).WithHint("give it one: --name NAME")
		}
		m.Name = release
	}
	if err := s.takeBoot(t, out, m.Name); err != nil {
		return err
	}
	if modules != "" {
		tell("make image of modules")
		if err := takeModules(ctx, modules, release, out); err != nil {
			return err
		}
	}
	return seal(ctx, out, m)
}

func releaseOf(kind kernelimage.Kind, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	return kernelimage.Release(kind, f, info.Size()), nil
}

// takeBoot moves the kernel and its configuration. What only one of them holds becomes a file, too: the kernel that a
// bzImage unpacks, and the configuration in that.
func (s *Store) takeBoot(t *tree, out, name string) error {
	for kind, file := range map[kernelimage.Kind]string{kernelimage.BzImage: imageFile, kernelimage.ELF: elfFile} {
		if t.kernels[kind] == "" {
			continue
		}
		if err := os.Rename(filepath.Join(t.dir, string(kind)), filepath.Join(out, file)); err != nil {
			return fmt.Errorf("take kernel: %w", err)
		}
	}
	elfPath := filepath.Join(out, elfFile)
	if t.kernels[kernelimage.ELF] == "" {
		if err := unpackKernel(filepath.Join(out, imageFile), elfPath); err != nil {
			// The bzImage boots as well, only later.
			s.log.Info("no unpacked kernel", "kernel", name, "err", err)
		}
	}
	err := os.Rename(filepath.Join(t.dir, treeConfig), filepath.Join(out, configFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	elf, err := os.Open(elfPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer elf.Close() //nolint:errcheck // read only
	info, err := elf.Stat()
	if err != nil {
		return err
	}
	if text := kernelimage.EmbeddedConfig(elf, info.Size()); text != nil {
		return os.WriteFile(filepath.Join(out, configFile), text, 0o644) // nothing secret
	}
	return nil
}

// unpackKernel writes the ELF file that a bzImage unpacks when it boots.
func unpackKernel(bzImage, to string) error {
	info, err := os.Stat(bzImage)
	if err != nil {
		return err
	}
	if info.Size() > kernelimage.MaxSize {
		return errors.New("absurd size")
	}
	data, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	kernel, err := kernelimage.Unpack(data)
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, kernel, 0o644); err != nil { // nothing secret
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// takeModules makes the image of all modules and keeps the few that the initramfs needs as files. Modules come without
// indexes in packages, which leave those to their installation.
func takeModules(ctx context.Context, modules, release, out string) error {
	_, err := os.Stat(filepath.Join(modules, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = kmod.Index(ctx, modules)
	}
	if err != nil {
		return fmt.Errorf("index modules: %w", err)
	}
	if err := packModules(ctx, modules, filepath.Join(out, modulesImage)); err != nil {
		return fmt.Errorf("make image of modules: %w", err)
	}
	wanted, err := wantedModules(modules)
	if err != nil {
		return err
	}
	files, err := initramfs.Resolve(modules, wanted)
	if err != nil {
		return err
	}
	boot := filepath.Join(out, bootDir, release)
	files = append(files, "modules.dep")
	for _, optional := range []string{"modules.builtin", "modules.softdep"} {
		if _, err := os.Stat(filepath.Join(modules, optional)); err == nil {
			files = append(files, optional)
		}
	}
	for _, file := range files {
		to := filepath.Join(boot, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { // nothing secret
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
		if errors.Is(err, fs.ErrNotExist) {
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
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil { // nothing secret
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
