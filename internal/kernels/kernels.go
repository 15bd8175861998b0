// Package kernels is the store of guest kernels: it makes those of its catalogue when they are first asked for, imports
// others from files, and makes the initramfs that boots a kernel with an agent. It knows what a kernel lacks for a backend.
//
// It owns the directory given to New: one directory per kernel, which appears by a rename when it is whole and never
// changes afterwards; and below the cache directory the initramfs archives, which may be deleted at any time. It doesn't own
// which VM uses which kernel.
//
// Locks: memo.mu guards the remembered agent digests, inspections.mu the remembered facts; neither is held over I/O. Making is serialised per kernel by package
// depot, between processes too. Goroutines: only those of depot, which end with their callers.
package kernels

import (
	"context"
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
	"sync"
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
	ImagePath    string    // bzImage; empty: there is only the unpacked kernel
	ELFPath      string    // the same kernel unpacked, which boots by PVH without unpacking itself; empty if not to be had
	ConfigPath   string    // its build configuration; empty if not to be had
	ModulesImage string    // read-only ext4 image of /lib/modules/<release>; its root holds modules.dep; empty: no modules
	Source       string    // where it comes from
	Package      string    // the package it comes from; may be empty
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
	Catalog  string // a file with further entries of the catalogue; empty: none
	Source   Source // nil: the Debian archive
	// Users returns who uses the kernel of this name, for people; nil: nobody does. A user must count before it looks for its kernel.
	Users func(ctx context.Context, name string) ([]string, error)
	Log   *slog.Logger
}

// Store keeps kernels.
type Store struct {
	dir, cache string
	downloads  string
	catalogue  string
	source     Source
	users      func(ctx context.Context, name string) ([]string, error)
	log        *slog.Logger
	kernels    *depot.Depot
	archives   *depot.Depot
	agents     memo
	inspected  inspections
}

// inspections are the facts that are known already.
type inspections struct {
	mu    sync.Mutex
	known map[string]Facts
}

// New returns a store. It does no I/O.
func New(c Config) *Store {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Source == nil {
		c.Source = debianSource{}
	}
	if c.Users == nil {
		c.Users = func(context.Context, string) ([]string, error) { return nil, nil }
	}
	cache := filepath.Join(c.CacheDir, "initramfs")
	return &Store{
		dir: c.Dir, cache: cache, downloads: filepath.Join(c.CacheDir, "downloads"), catalogue: c.Catalog,
		source: c.Source, users: c.Users, log: c.Log, inspected: inspections{known: map[string]Facts{}},
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
	entries, cerr := s.readCatalog()
	if cerr != nil {
		return Kernel{}, cerr
	}
	r, ok := entries[name]
	if !ok {
		// A deletion that finds the kernel in use puts it back.
		if err := s.kernels.Settled(ctx, name); err != nil {
			return Kernel{}, err
		}
		if k, err := s.Get(name); !fault.Is(err, fault.NotFound) {
			return k, err
		}
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
	path := func(file string) string {
		if m.Files[file] == "" {
			return ""
		}
		return filepath.Join(dir, file)
	}
	return Kernel{
		Name: name, Release: m.Release, Digest: m.Digest, Source: m.Source, Package: m.Package, Version: m.Version,
		Created: m.Created, dir: dir, ImagePath: path(imageFile), ELFPath: path(elfFile), ConfigPath: path(configFile),
		ModulesImage: path(modulesImage),
	}, nil
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

// Delete removes a kernel; one that isn't there is fault.NotFound, one that is in use fault.Precondition, naming its users.
// Running guests don't need its files any more, except for the modules image.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := validateName(name); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, name)
	err := s.kernels.Exclusive(ctx, name, nil, func(work string) error {
		if err := s.checkUnused(ctx, name); err != nil {
			return err
		}
		aside := filepath.Join(work, "old") // work is removed afterwards
		err := os.Rename(dir, aside)
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "no kernel %q here", name).WithHint("see which there are: banger kernel list")
		}
		if err != nil {
			return err
		}
		// Whoever has come to use it in between has said so before looking for it.
		if err := s.checkUnused(context.WithoutCancel(ctx), name); err != nil {
			return errors.Join(err, os.Rename(aside, dir))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete kernel %s: %w", name, err)
	}
	return nil
}

func (s *Store) checkUnused(ctx context.Context, name string) error {
	users, err := s.users(ctx, name)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fault.New(fault.Precondition, "it is in use by %s", strings.Join(users, ", ")).
			WithHint("delete them first: banger vm delete <vm>, banger image delete <image>")
	}
	return nil
}

// Users returns who uses a kernel, for people: "VM devbox".
func (s *Store) Users(ctx context.Context, name string) ([]string, error) { return s.users(ctx, name) }

// Recover removes what killed processes left behind, and archives that have not been made or used for a month.
func (s *Store) Recover(ctx context.Context) error {
	return errors.Join(s.kernels.Sweep(ctx), s.archives.Sweep(ctx), s.expireArchives())
}

func validateName(name string) error {
	bad := len(name) < 1 || len(name) > 63 || strings.ContainsAny(name[:1]+name[len(name)-1:], ".-") ||
		strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' })
	if bad {
		return fault.New(fault.Invalid, "bad kernel name %.80q", name).
			WithHint("use 1 to 63 characters of a-z, 0-9, - and ., with a letter or digit at both ends")
	}
	return nil
}
