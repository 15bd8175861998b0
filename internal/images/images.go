// Package images is the store of root images: those of its catalogue and of registries, which it makes when they are first
// asked for, those imported from archives, and files registered where they are. It keeps them by digest, with names that
// point at them.
//
// It owns the directory given to New: "blobs/sha256/<hex>.ext4" holds the filesystems, "<hex>.json" beside each what is
// known of it, "names/<name>.json" the names. Every file appears by a rename when it is whole and is never changed; no
// file holds a path, so that the store can be moved, but for registered images. It doesn't own which VM uses which image:
// it asks Config.Users. Nor what registries and archives look like: that is package oci's.
//
// Who asks for an image on behalf of a VM has recorded that VM, without a digest, before: then no image is removed until
// the digest is recorded as well, and there is no moment at which a chosen image may go.
//
// Locks, by package depot, between processes too: one per name while an image is made or deleted; and, inside it, "publish"
// for milliseconds while a name or blob appears or goes, so that a blob is never removed under a new name. Goroutines: only
// those of depot and one per image that is being made, which end with their callers.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"banger/internal/depot"
	"banger/internal/fault"
	"banger/internal/oci"
	"banger/internal/progress"
	"banger/internal/store"
)

// Default is the image to use if none is named.
const Default = "debian-bookworm"

// Image is a root filesystem that is there.
type Image struct {
	Name       string // empty if it was found by its digest
	Digest     string // "sha256:..." of the filesystem
	RootPath   string // raw, read-only ext4 image
	Size       int64  // bytes, apparent
	Created    time.Time
	Source     string // what it was made from: "catalog:debian-bookworm", "docker.io/library/alpine:3.20", "archive:app.tar"
	HasSystemd bool
	Config     oci.Config // how it wants to be run
	Manifest   string     // "sha256:..." of the manifest that it was made from; empty: it was made from none
	Platform   string     // "linux/arm64"; empty: that of this host
	Registered bool       // RootPath is the user's own file
	Kernel     string     // that it was recorded to boot with; empty: none
}

// Builder makes root filesystems.
type Builder interface {
	// Build writes the root filesystem of an entry of the catalogue to tar. work is an empty directory for it alone; log a
	// file for its messages, which is kept.
	Build(ctx context.Context, e Entry, work, log string, tar io.Writer, sink progress.Sink) error
}

// Config is what a Store needs.
type Config struct {
	Dir      string // where images are kept; made if missing
	CacheDir string // where build logs go
	Builder  Builder
	Sources  Sources // nil: no registries and archives
	Catalog  CatalogSource
	// Users returns every VM with the image that it uses; nil: it can't be told, so no image is ever removed.
	Users func(ctx context.Context) ([]store.ImageUser, error)
	Log   *slog.Logger
}

// Store keeps images.
type Store struct {
	shelf
	catalogue

	logs    string
	builder Builder
	sources Sources
}

// shelf is the directory of the store: blobs and the names that point at them.
type shelf struct {
	dir   string
	users func(ctx context.Context) ([]store.ImageUser, error)
	log   *slog.Logger
	depot *depot.Depot
}

// New returns a store. It does no I/O.
func New(c Config) *Store {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Builder == nil {
		c.Builder = debianBuilder{}
	}
	if c.Sources == nil {
		c.Sources = noSources{}
	}
	if c.Users == nil {
		c.Users = func(context.Context) ([]store.ImageUser, error) { return []store.ImageUser{{VM: "unknown"}}, nil }
	}
	d := depot.New(c.Dir, c.Log)
	return &Store{
		shelf:     shelf{dir: c.Dir, users: c.Users, log: c.Log, depot: d},
		catalogue: catalogue{source: c.Catalog, cache: filepath.Join(c.Dir, "catalogs"), scratch: d},
		logs:      filepath.Join(c.CacheDir, "logs"), builder: c.Builder, sources: c.Sources,
	}
}

// noSources is what there is without registries.
type noSources struct{}

func (noSources) Open(_ context.Context, ref string, _ oci.Platform) (Source, error) {
	return nil, fault.New(fault.NotFound, "no image %q, and no registry to ask", ref).
		WithHint("see which there are: banger image list")
}

func (noSources) OpenArchive(context.Context, string, string) (Source, error) {
	return nil, fault.New(fault.Unsupported, "this store reads no archives")
}

func (noSources) Prune(context.Context, bool) (int64, error) { return 0, nil }

// Ensure returns an image, making or pulling it first if it isn't there: once, however many ask together. A name that is in
// neither store nor catalogue and can be no reference of a registry is fault.NotFound at once. An image that is there costs
// reading two small files; no registry is asked.
func (s *Store) Ensure(ctx context.Context, ref string, sink progress.Sink) (Image, error) {
	if err := s.fetchCatalog(ctx); err != nil {
		return Image{}, err
	}
	m, err := s.mean(ref)
	if err != nil {
		return Image{}, err
	}
	var img Image
	switch {
	case m.digest != "":
		img, err = s.ByDigest(m.digest)
	case m.name != "":
		img, err = s.byName(m.name)
		if fault.Is(err, fault.NotFound) { // its blob is lost or cut short: made anew from where it came
			img, err = s.remake(ctx, m.name, sink)
		}
	case m.entry != nil:
		img, err = s.build(ctx, *m.entry, sink)
	default:
		img, err = s.pull(ctx, m.ref, oci.Platform{}, false, sink)
		err = s.maybeMisspelt(ref, err)
	}
	if err != nil {
		return Image{}, err
	}
	return img, img.usable()
}

// remake makes an image whose name is here, but not its filesystem.
func (s *Store) remake(ctx context.Context, name string, sink progress.Sink) (Image, error) {
	entries, err := s.catalog()
	if err != nil {
		return Image{}, err
	}
	if e, ok := entries[name]; ok {
		return s.build(ctx, e, sink)
	}
	if ref, err := reference(name); err == nil && ref == name {
		return s.pull(ctx, name, oci.Platform{}, false, sink)
	}
	return Image{}, fault.New(fault.Corrupt, "the image %s is damaged: its filesystem is gone", name).
		WithHint("delete it and import it again: banger image delete %s", name)
}

// usable says why an image can't be booted here.
func (i Image) usable() error {
	if i.Platform != "" {
		if p, err := oci.ParsePlatform(i.Platform); err == nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			return fault.New(fault.Unsupported, "the image %s is for %s, and this host runs linux/%s", i.Name, i.Platform, runtime.GOARCH).
				WithHint("fetch that for this host: banger image pull --platform linux/%s %s", runtime.GOARCH, i.Name)
		}
	}
	return nil
}

// Get returns the image that a name, reference or digest means if it is there, else fault.NotFound. It makes none.
func (s *Store) Get(ref string) (Image, error) {
	m, err := s.mean(ref)
	switch {
	case err != nil:
		return Image{}, err
	case m.digest != "":
		return s.ByDigest(m.digest)
	case m.name != "":
		return s.byName(m.name)
	default:
		return Image{}, fault.New(fault.NotFound, "no image %q here", ref).WithHint("see which there are: banger image list")
	}
}

// has reports whether a name is here, with or without its filesystem.
func (s *shelf) has(name string) (bool, error) {
	_, err := os.Lstat(s.namePath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// byName returns the image of a name that is here; fault.NotFound if name or filesystem are not. With an error it has at most
// name and digest.
func (s *shelf) byName(name string) (Image, error) {
	var n nameFile
	if err := readJSON(s.namePath(name), &n); errors.Is(err, fs.ErrNotExist) {
		return Image{}, fault.New(fault.NotFound, "no image %q here", name)
	} else if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", name, err)
	}
	img, err := s.ByDigest(n.Digest)
	if err != nil {
		return Image{Name: name, Digest: n.Digest}, err
	}
	img.Name = name
	if n.Source != "" {
		img.Source, img.Created, img.Manifest, img.Platform, img.Kernel = n.Source, n.Created, n.Manifest, n.Platform, n.Kernel
	}
	if n.Config != nil {
		img.Config = *n.Config
	}
	return img, nil
}

// ByDigest returns the image with a digest if it is there, named or not, else fault.NotFound.
func (s *shelf) ByDigest(digest string) (Image, error) {
	root, err := s.blobPath(digest)
	if err != nil {
		return Image{}, err
	}
	missing := fault.New(fault.NotFound, "the image %s is not here", digest).WithHint("see which there are: banger image list")
	var b blobFile
	if err := readJSON(metaPath(root), &b); errors.Is(err, fs.ErrNotExist) {
		return Image{}, missing
	} else if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", digest, err)
	}
	img := Image{
		Digest: digest, RootPath: root, Size: b.Size, Created: b.Created, Source: b.Source,
		HasSystemd: b.HasSystemd, Config: b.Config,
	}
	if b.File != nil {
		img.RootPath, img.Registered = b.File.Path, true
		return img, b.File.check(b.Size)
	}
	info, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() != b.Size {
		return Image{}, missing // lost or cut short: made anew
	}
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", digest, err)
	}
	return img, nil
}

// List returns the images that have names, by name. One that is damaged is left out, with a warning in the log.
func (s *shelf) List() ([]Image, error) {
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Image
	for _, name := range names {
		img, err := s.byName(name)
		if err != nil {
			s.log.Warn("image left out of the list", "image", name, "err", err)
			continue
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Recover removes what killed processes left behind and images that neither a name nor a VM needs. It never waits for
// a build.
func (s *shelf) Recover(ctx context.Context) error {
	err := s.depot.Sweep(ctx)
	return errors.Join(err, s.publishing(ctx, func(string) error { _, err := s.collect(ctx, false); return err }))
}

// unknown is the error for a name that nothing has.
func (s *catalogue) unknown(ref string) error {
	return fault.New(fault.NotFound, "no image %.100q", ref).WithHint("%s", s.catalogHint())
}

func (s *catalogue) catalogHint() string {
	entries, err := s.Catalog()
	if err != nil {
		return "see which images there are: banger image list"
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	return "the catalogue has: " + strings.Join(names, ", ")
}

// maybeMisspelt adds to the error of a registry what the catalogue has, if that may have been meant.
func (s *catalogue) maybeMisspelt(ref string, err error) error {
	if err == nil || validatePlain(ref) != nil || fault.Is(err, fault.Canceled) {
		return err
	}
	return fault.New(fault.KindOf(err), "%q is no image of the catalogue, and can't be pulled: %w", ref, err).
		WithHint("%s", s.catalogHint())
}
