// Package kernels is the store of guest kernels: it makes those of its catalogue when they are first asked for, and the
// initramfs that boots a kernel with an agent.
//
// It owns the directory given to New: one directory per kernel, which appears by a rename when it is whole and never
// changes afterwards; and below the cache directory the initramfs archives, which may be deleted at any time. It doesn't own
// which VM uses which kernel.
//
// Locks: memo.mu guards the remembered agent digests and is not held over I/O. Making is serialised per kernel by package
// depot, between processes too. Goroutines: only those of depot, which end with their callers.
package kernels

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"banger/internal/depot"
	"banger/internal/fault"
	"banger/internal/progress"
)

// Default is the kernel to use if none is named.
const Default = "debian-cloud"

// Names of the files of a kernel, in its directory.
const (
	manifestFile = "manifest.json"
	imageFile    = "vmlinuz"
	elfFile      = "vmlinux"
	configFile   = "config"
	modulesImage = "modules.ext4"
	bootDir      = "boot" // the modules that the initramfs needs, laid out as /lib/modules, with depmod's files
)

// format is the version of what a kernel's directory holds. A kernel of another format is made anew.
const format = 1

// bootModules are what a guest needs to reach its disks, its network and the host, in the order to load them. Those built
// into a kernel are skipped.
func bootModules() []string {
	return []string{
		"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng",
		"overlay", "ext4", "vsock", "vmw_vsock_virtio_transport",
	}
}

// Kernel is a kernel that is there.
type Kernel struct {
	Name         string
	Release      string    // as uname -r says
	Digest       string    // "sha256:...", of the kernel and its modules together
	ImagePath    string    // bzImage
	ELFPath      string    // the same kernel unpacked, which boots by PVH without unpacking itself; empty if not to be had
	ConfigPath   string    // its build configuration
	ModulesImage string    // read-only ext4 image of /lib/modules/<release>; its root holds modules.dep
	Package      string    // the package it comes from
	Version      string    // and its version
	Created      time.Time //
	dir          string
}

// manifest is a kernel's record on disk. It holds no paths, so that the store can be moved.
type manifest struct {
	Format  int               `json:"format"`
	Name    string            `json:"name"`
	Release string            `json:"release"`
	Digest  string            `json:"digest"`
	Source  string            `json:"source"`
	Package string            `json:"package"`
	Version string            `json:"version"`
	Files   map[string]string `json:"files"` // digests by name
	Created time.Time         `json:"created"`
}

// recipe is an entry of the catalogue.
type recipe struct {
	Description string `json:"description"`
	Arch        string `json:"arch"`
	Suite       string `json:"suite"`
	Package     string `json:"package"` // a metapackage that depends on the newest kernel package
}

//go:embed catalog.json
var catalogJSON []byte

func catalog() (map[string]recipe, error) {
	var c map[string]recipe
	if err := json.Unmarshal(catalogJSON, &c); err != nil {
		return nil, fmt.Errorf("read kernel catalogue: %w", err)
	}
	return c, nil
}

// Source gets the files of a kernel.
type Source interface {
	// Fetch downloads the newest kernel that a metapackage stands for and unpacks it to the directory root: /boot/vmlinuz-*,
	// /boot/config-*, and /lib/modules/* with depmod's files. work is an empty directory to work in.
	Fetch(ctx context.Context, suite, metapackage, work, root string, sink progress.Sink) (Fetched, error)
}

// Fetched says where a kernel comes from.
type Fetched struct{ Source, Package, Version string }

// Config is what a Store needs.
type Config struct {
	Dir      string // where kernels are kept; made if missing
	CacheDir string // where archives are kept that can be made again
	Source   Source // nil: the Debian archive
	Log      *slog.Logger
}

// Store keeps kernels.
type Store struct {
	dir, cache string
	source     Source
	log        *slog.Logger
	kernels    *depot.Depot
	archives   *depot.Depot
	agents     memo
}

// New returns a store. It does no I/O.
func New(c Config) *Store {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Source == nil {
		c.Source = debianSource{}
	}
	cache := filepath.Join(c.CacheDir, "initramfs")
	return &Store{
		dir: c.Dir, cache: cache, source: c.Source, log: c.Log,
		kernels: depot.New(c.Dir, c.Log), archives: depot.New(cache, c.Log),
	}
}

// Ensure returns a kernel, making it first if it isn't there: once, however many ask together. A name that is in neither
// store nor catalogue is fault.NotFound at once. A kernel that is there costs reading one small file.
func (s *Store) Ensure(ctx context.Context, name string, sink progress.Sink) (Kernel, error) {
	k, err := s.Get(name)
	if !fault.Is(err, fault.NotFound) {
		return k, err
	}
	entries, cerr := catalog()
	if cerr != nil {
		return Kernel{}, cerr
	}
	r, ok := entries[name]
	if !ok {
		return Kernel{}, fault.New(fault.NotFound, "no kernel %q", name).
			WithHint("the catalogue has: %s", strings.Join(slices.Sorted(maps.Keys(entries)), ", "))
	}
	if r.Arch != runtime.GOARCH {
		return Kernel{}, fault.New(fault.Unsupported, "kernel %s is for %s, this host is %s", name, r.Arch, runtime.GOARCH)
	}
	err = s.kernels.Do(ctx, sink, depot.Job{
		Key:  name,
		Have: func() (bool, error) { return s.have(name) },
		Make: func(ctx context.Context, work string, sink progress.Sink) error {
			end := sink.Stage("prepare kernel " + name)
			err := s.make(ctx, name, r, work, sink)
			end(err)
			return err
		},
	})
	if err != nil {
		return Kernel{}, fmt.Errorf("prepare kernel %s: %w", name, err)
	}
	return s.Get(name)
}

func (s *Store) have(name string) (bool, error) {
	_, err := s.Get(name)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// Get returns a kernel that is there, else fault.NotFound. It looks at no catalogue.
func (s *Store) Get(name string) (Kernel, error) {
	if err := validateName(name); err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(s.dir, name)
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, fault.New(fault.NotFound, "no kernel %q here", name)
	}
	if err != nil {
		return Kernel{}, fmt.Errorf("read kernel %s: %w", name, err)
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil || m.Format != format || m.Name != name || m.Digest == "" {
		// Damaged, or another version's: as good as not there, and made anew.
		return Kernel{}, fault.New(fault.NotFound, "no usable kernel %q here", name)
	}
	for file := range m.Files {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			return Kernel{}, fault.New(fault.NotFound, "kernel %q lacks its file %s", name, file)
		}
	}
	k := Kernel{
		Name: name, Release: m.Release, Digest: m.Digest, Package: m.Package, Version: m.Version, Created: m.Created, dir: dir,
		ImagePath: filepath.Join(dir, imageFile), ConfigPath: filepath.Join(dir, configFile),
		ModulesImage: filepath.Join(dir, modulesImage),
	}
	if m.Files[elfFile] != "" {
		k.ELFPath = filepath.Join(dir, elfFile)
	}
	return k, nil
}

// List returns the kernels that are there, by name. One that is damaged is left out.
func (s *Store) List() ([]Kernel, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list kernels: %w", err)
	}
	var out []Kernel
	for _, e := range entries {
		if k, err := s.Get(e.Name()); err == nil {
			out = append(out, k)
		}
	}
	return out, nil
}

// Available is an entry of the catalogue.
type Available struct{ Name, Description string }

// Catalog returns what Ensure can make, by name.
func Catalog() ([]Available, error) {
	entries, err := catalog()
	if err != nil {
		return nil, err
	}
	var out []Available
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		out = append(out, Available{Name: name, Description: entries[name].Description})
	}
	return out, nil
}

// Delete removes a kernel; one that isn't there is fault.NotFound. Running guests don't need its files any more, except for
// the modules image.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := validateName(name); err != nil {
		return err
	}
	err := s.kernels.Exclusive(ctx, name, nil, func(work string) error {
		err := os.Rename(filepath.Join(s.dir, name), filepath.Join(work, "old")) // work is removed afterwards
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "no kernel %q here", name)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete kernel %s: %w", name, err)
	}
	return nil
}

// Recover removes what killed processes left behind, and archives that have not been made or used for a month.
func (s *Store) Recover(ctx context.Context) error {
	return errors.Join(s.kernels.Sweep(ctx), s.archives.Sweep(ctx), s.expireArchives())
}

func validateName(name string) error {
	bad := len(name) < 1 || len(name) > 63 || name[0] == '.' || name[0] == '-' ||
		strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' })
	if bad {
		return fault.New(fault.Invalid, "bad kernel name %.80q", name).
			WithHint("use 1 to 63 characters of a-z, 0-9, - and ., beginning with a letter or digit")
	}
	return nil
}
