package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/kernelimage"
	"banger/internal/kmod"
	"banger/internal/packages"
)

// Bounds on what is gathered. A distribution's kernel has 5,000 files and some hundred MB.
const (
	maxBytes = 4 << 30
	maxFiles = 100_000
)

// tree is what was gathered of one kernel, in a directory: an image, an ELF file, a configuration, and modules below
// "modules".
type tree struct {
	dir     string
	root    *os.Root // so that nothing is written elsewhere, whatever the names are
	bytes   int64
	files   int
	kernels map[kernelimage.Kind]string // label of the file that it is from
	names   []string                    // of packages
	version string
}

// Names in a tree.
const (
	treeImage   = "kernel" // not yet known of what kind
	treeConfig  = configFile
	treeModules = "modules"
	noRelease   = "_" // stands for the release of modules that don't tell theirs
)

func newTree(dir string) (*tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil { // nothing secret
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	return &tree{dir: dir, root: root, kernels: map[kernelimage.Kind]string{}}, err
}

// add gathers what a path holds: a package, a directory, or a kernel.
func (t *tree) add(ctx context.Context, file string) error {
	f, err := openRegular(file)
	if err != nil {
		return err
	}
	if f == nil {
		return t.addDirectory(ctx, file)
	}
	defer f.Close() //nolint:errcheck // read only
	head := make([]byte, 8)
	if n, _ := f.ReadAt(head, 0); packages.Is(head[:n]) {
		return t.addPackage(ctx, file)
	}
	if _, err := kernelimage.Identify(f); err != nil {
		return fault.New(fault.KindOf(err), "%s is no kernel: %w", file, err).
			WithHint("give a kernel package (.deb, .rpm), a bzImage, a vmlinux, or a directory with one of them")
	}
	return t.put(ctx, treeImage, filepath.Base(file), f)
}

// openRegular opens a file; nil for a directory. Anything else is refused, and not waited for.
func openRegular(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no file %s", file)
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.New(fault.Denied, "read kernel: %w", err)
	case err != nil:
		return nil, fault.New(fault.Invalid, "read kernel: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		return nil, f.Close()
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "%s is neither a file nor a directory", file)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (t *tree) addPackage(ctx context.Context, file string) error {
	p, err := packages.Open(file)
	if err != nil {
		return err
	}
	defer p.Close()
	if p.Name != "" {
		t.names, t.version = append(t.names, p.Name), p.Version
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, content, err := p.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.Mode&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return fault.New(fault.Corrupt, "the package %s holds %s, which is no ordinary file", filepath.Base(file), e.Name)
		}
		to := place(e.Name)
		switch {
		case to == "" || e.Mode.IsDir() || e.Mode&fs.ModeSymlink != 0: // links lead to packages that are not there
			continue
		case !e.Mode.IsRegular():
			return fault.New(fault.Unsupported, "the package %s holds the hard link %s", filepath.Base(file), e.Name)
		}
		if err := t.put(ctx, to, e.Name, content); err != nil {
			return err
		}
	}
}

// addDirectory gathers from a directory. Links are followed within it, and only to files.
func (t *tree) addDirectory(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("read kernel: %w", err)
	}
	defer root.Close() //nolint:errcheck // read only
	seen := 0
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if seen++; seen > maxFiles {
			return fault.New(fault.Invalid, "%s holds absurdly many files for a kernel", dir)
		}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		to := place(name)
		if d.IsDir() || to == "" {
			return nil
		}
		f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			if d.Type()&fs.ModeSymlink != 0 {
				return nil // it leads elsewhere
			}
			return fmt.Errorf("read kernel: %w", err)
		}
		defer f.Close() //nolint:errcheck // read only
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return err
		}
		return t.put(ctx, to, name, f)
	})
}

// place returns where in a tree a file of a package or directory belongs; "" if it is of no interest. It knows the layouts
// of Debian (/boot and /lib/modules), of Fedora and Arch (all of it below /usr/lib/modules), and of a directory that
// somebody put together: vmlinuz or vmlinux, config, modules/.
func place(name string) string {
	name = strings.TrimPrefix(name, "usr/")
	top, rest, below := strings.Cut(name, "/")
	if rest2, ok := strings.CutPrefix(rest, "modules/"); ok && top == "lib" {
		release, file, ok := strings.Cut(rest2, "/")
		if !ok || !kernelimage.ValidRelease(release) {
			return ""
		}
		if to := placeKernel(file); to != "" {
			return to
		}
		return placeModule(release, file)
	}
	switch {
	case top == "boot" && below, !below:
		return placeKernel(path.Base(name))
	case top == treeModules:
		if release, file, ok := strings.Cut(rest, "/"); ok && kernelimage.ValidRelease(release) {
			return placeModule(release, file)
		}
		return placeModule(noRelease, rest)
	}
	return ""
}

func placeKernel(file string) string {
	if strings.Contains(file, "/") || strings.HasSuffix(file, ".hmac") || strings.HasSuffix(file, ".sig") {
		return ""
	}
	word, _, _ := strings.Cut(file, "-")
	switch word {
	case "vmlinuz", "vmlinux", "bzImage":
		return treeImage
	case "config", ".config":
		return treeConfig
	}
	return ""
}

func placeModule(release, file string) string {
	index := strings.HasPrefix(file, "modules.") && !strings.Contains(file, "/")
	if !filepath.IsLocal(file) || !index && !kmod.IsModule(file) {
		return ""
	}
	return path.Join(treeModules, release, file)
}

// put writes one file. Of kernels there may be one of each kind, of anything else only one.
func (t *tree) put(ctx context.Context, to, label string, content io.Reader) (err error) {
	if t.files++; t.files > maxFiles {
		return fault.New(fault.Invalid, "absurdly many files for a kernel")
	}
	if err := t.root.MkdirAll(path.Dir(to), 0o755); err != nil {
		return fmt.Errorf("gather kernel: %w", err)
	}
	f, err := t.root.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Invalid, "there are two files for %s, the second is %s", to, label).
			WithHint("give the files of one kernel")
	}
	if err != nil {
		return fmt.Errorf("gather kernel: %w", err)
	}
	n, err := io.Copy(f, io.LimitReader(ctxReader{ctx, content}, maxBytes-t.bytes+1))
	if t.bytes += n; err == nil && t.bytes > maxBytes {
		err = fault.New(fault.Invalid, "the kernel is larger than %d MiB", maxBytes>>20)
	}
	kind := kernelimage.Kind("")
	if err == nil && to == treeImage {
		if kind, err = kernelimage.Identify(f); err != nil {
			err = fault.New(fault.KindOf(err), "%s is no kernel: %w", label, err)
		} else if other := t.kernels[kind]; other != "" {
			err = fault.New(fault.Invalid, "there are two kernels: %s and %s", other, label).WithHint("give the files of one kernel")
		}
	}
	if err = errors.Join(err, f.Close()); err != nil || kind == "" {
		return err
	}
	t.kernels[kind] = label
	return t.root.Rename(treeImage, string(kind))
}

// modules returns the directory of the modules, and their release; both empty if there are none.
func (t *tree) modules() (dir, release string, err error) {
	entries, err := os.ReadDir(filepath.Join(t.dir, treeModules))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() })
	switch len(entries) {
	case 0:
		return "", "", nil
	case 1:
		return filepath.Join(t.dir, treeModules, entries[0].Name()), entries[0].Name(), nil
	}
	return "", "", fault.New(fault.Invalid, "there are modules of %d kernels", len(entries)).WithHint("give the files of one kernel")
}

// ctxReader stops reading when its context ends.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // lives for one copy
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
