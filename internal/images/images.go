// Package images is the store of root images: it makes those of its catalogue when they are first asked for, and keeps
// them by digest, with names that point at them.
//
// It owns the directory given to New: "blobs/sha256/<hex>.ext4" holds the filesystems, "<hex>.json" beside each what is
// known of it, "names/<name>.json" the names. Every file appears by a rename when it is whole and is never changed; no
// file holds a path, so that the store can be moved. It doesn't own which VM uses which image: it asks Config.InUse.
//
// Locks, by package depot, between processes too: one per name while an image is made or deleted; and, inside it, "publish"
// for milliseconds while a name or blob appears or goes, so that a blob is never removed under a new name. Goroutines: only
// those of depot, which end with their callers.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/depot"
	"banger/internal/fault"
	"banger/internal/progress"
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
	Source     string // what it was made from: "catalog:debian-bookworm"
	HasSystemd bool
	Config     RunConfig
}

// RunConfig says how the image wants to be run, as in OCI image configurations.
type RunConfig struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkDir    string   `json:"workdir,omitempty"`
	User       string   `json:"user,omitempty"`
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
	// InUse says whether a VM needs the image with this digest; nil: it can't be told, so no image is ever removed.
	InUse func(ctx context.Context, digest string) (bool, error)
	Log   *slog.Logger
}

// Store keeps images.
type Store struct {
	dir, logs string
	builder   Builder
	inUse     func(ctx context.Context, digest string) (bool, error)
	log       *slog.Logger
	depot     *depot.Depot
}

// New returns a store. It does no I/O.
func New(c Config) *Store {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Builder == nil {
		c.Builder = debianBuilder{}
	}
	if c.InUse == nil {
		c.InUse = func(context.Context, string) (bool, error) { return true, nil }
	}
	return &Store{
		dir: c.Dir, logs: filepath.Join(c.CacheDir, "logs"), builder: c.Builder, inUse: c.InUse, log: c.Log,
		depot: depot.New(c.Dir, c.Log),
	}
}

// Ensure returns an image, making it first if it isn't there: once, however many ask together. A name that is in neither
// store nor catalogue is fault.NotFound at once. An image that is there costs reading two small files.
func (s *Store) Ensure(ctx context.Context, ref string, sink progress.Sink) (Image, error) {
	img, err := s.Get(ref)
	if !fault.Is(err, fault.NotFound) {
		return img, err
	}
	entries, cerr := catalog()
	if cerr != nil {
		return Image{}, cerr
	}
	e, ok := entries[ref]
	if !ok {
		return Image{}, fault.New(fault.NotFound, "no image %q", ref).
			WithHint("the catalogue has: %s", strings.Join(slices.Sorted(maps.Keys(entries)), ", "))
	}
	err = s.depot.Do(ctx, sink, depot.Job{
		Key: ref,
		Have: func() (bool, error) {
			_, err := s.Get(ref)
			if fault.Is(err, fault.NotFound) {
				return false, nil
			}
			return err == nil, err
		},
		Make: func(ctx context.Context, work string, sink progress.Sink) error {
			end := sink.Stage("build image " + ref)
			err := s.build(ctx, e, work, sink)
			end(err)
			return err
		},
	})
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", ref, err)
	}
	return s.Get(ref)
}

// Get returns the image with a name if it is there, else fault.NotFound. It looks at no catalogue.
func (s *Store) Get(name string) (Image, error) {
	if err := validateName(name); err != nil {
		return Image{}, err
	}
	var n nameFile
	if err := readJSON(s.namePath(name), &n); errors.Is(err, fs.ErrNotExist) {
		return Image{}, fault.New(fault.NotFound, "no image %q here", name)
	} else if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", name, err)
	}
	img, err := s.ByDigest(n.Digest)
	if err != nil {
		return Image{}, err
	}
	img.Name = name
	return img, nil
}

// ByDigest returns the image with a digest if it is there, named or not, else fault.NotFound.
func (s *Store) ByDigest(digest string) (Image, error) {
	root, err := s.blobPath(digest)
	if err != nil {
		return Image{}, err
	}
	missing := fault.New(fault.NotFound, "the image %s is not here", digest)
	var b blobFile
	if err := readJSON(metaPath(root), &b); errors.Is(err, fs.ErrNotExist) {
		return Image{}, missing
	} else if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", digest, err)
	}
	info, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() != b.Size {
		return Image{}, missing // lost or cut short: made anew
	}
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", digest, err)
	}
	return Image{
		Digest: digest, RootPath: root, Size: b.Size, Created: b.Created, Source: b.Source,
		HasSystemd: b.HasSystemd, Config: b.Config,
	}, nil
}

// List returns the images that have names, by name. One that is damaged is left out, with a warning in the log.
func (s *Store) List() ([]Image, error) {
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []Image
	for _, name := range names {
		img, err := s.Get(name)
		if err != nil {
			s.log.Warn("image left out of the list", "image", name, "err", err)
			continue
		}
		out = append(out, img)
	}
	return out, nil
}

// Delete removes a name, and the image with it unless another name points to it or a VM uses it; in the latter case the
// image goes when Recover finds it unused. A name that isn't there is fault.NotFound.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := validateName(name); err != nil {
		return err
	}
	err := s.depot.Exclusive(ctx, name, nil, func(string) error {
		var n nameFile
		path := s.namePath(name)
		err := readJSON(path, &n)
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "no image %q here", name)
		}
		if err != nil {
			s.log.Warn("damaged image name removed", "image", name, "err", err)
		}
		return s.publishing(ctx, func(string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return s.collect(ctx)
		})
	})
	if err != nil {
		return fmt.Errorf("delete image %s: %w", name, err)
	}
	return nil
}

// Recover removes what killed processes left behind and images that neither a name nor a VM needs. It never waits for
// a build.
func (s *Store) Recover(ctx context.Context) error {
	err := s.depot.Sweep(ctx)
	return errors.Join(err, s.publishing(ctx, func(string) error { return s.collect(ctx) }))
}

// Usage returns how many bytes the images take on the disk: holes don't count.
func (s *Store) Usage() (int64, error) {
	entries, err := os.ReadDir(s.blobDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("measure images: %w", err)
	}
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += allocated(info)
		}
	}
	return total, nil
}

func validateName(name string) error {
	if strings.ContainsAny(name, "/:@") {
		return fault.New(fault.Unsupported, "image references such as %.80q come in a later version", name).
			WithHint("use a name of the catalogue: banger image list")
	}
	bad := len(name) < 1 || len(name) > 63 || name[0] == '.' || name[0] == '-' || name == publishKey ||
		strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' })
	if bad {
		return fault.New(fault.Invalid, "bad image name %.80q", name).
			WithHint("use 1 to 63 characters of a-z, 0-9, - and ., beginning with a letter or digit")
	}
	return nil
}
