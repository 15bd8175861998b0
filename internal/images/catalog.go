package images

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"banger/internal/depot"
	"banger/internal/fault"
)

//go:embed catalog.json
var catalogJSON []byte

// CatalogSource says where the catalogue is. The zero value is the one that is part of this program.
type CatalogSource struct {
	Location string // absolute path or URL of a catalogue that takes its place
	SHA256   string // of the catalogue, in hexadecimal; required for a URL
}

// catalogue is what images can be made of by name.
type catalogue struct {
	source  CatalogSource
	cache   string // directory of catalogues that were fetched
	scratch *depot.Depot
}

// maxCatalog bounds a catalogue, in bytes.
const maxCatalog = 4 << 20

// catalog returns the entries by name. One that has to be fetched must have been: see fetchCatalog.
func (s *catalogue) catalog() (map[string]Entry, error) {
	switch {
	case s.source.Location == "":
		return parseCatalog(catalogJSON)
	case isURL(s.source.Location):
		text, err := os.ReadFile(s.fetchedCatalog())
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Unavailable, "the catalogue %s has not been fetched yet", s.source.Location).
				WithHint("fetch it: banger image list")
		}
		if err != nil {
			return nil, err
		}
		return s.checkCatalog(text)
	default:
		f, err := os.Open(s.source.Location)
		if err != nil {
			return nil, fault.New(fault.NotFound, "read image catalogue: %w", err).WithHint("see catalog in [images] of the config file")
		}
		defer f.Close() //nolint:errcheck // only read
		text, err := io.ReadAll(io.LimitReader(f, maxCatalog+1))
		if err != nil {
			return nil, fmt.Errorf("read image catalogue: %w", err)
		}
		return s.checkCatalog(text)
	}
}

// checkCatalog parses a catalogue that is not part of this program.
func (s *catalogue) checkCatalog(text []byte) (map[string]Entry, error) {
	if len(text) > maxCatalog {
		return nil, fault.New(fault.Invalid, "the image catalogue %s is larger than %d MiB", s.source.Location, maxCatalog>>20)
	}
	if s.source.SHA256 != "" && hexSum(text) != strings.ToLower(s.source.SHA256) {
		return nil, fault.New(fault.Corrupt, "the image catalogue %s has the SHA-256 %s, and %s is configured",
			s.source.Location, hexSum(text), s.source.SHA256).WithHint("see catalog_sha256 in [images] of the config file")
	}
	return parseCatalog(text)
}

func (s *catalogue) fetchedCatalog() string {
	return filepath.Join(s.cache, strings.ToLower(s.source.SHA256)+".json")
}

// fetchCatalog brings a catalogue that is configured by its URL here, once.
func (s *catalogue) fetchCatalog(ctx context.Context) error {
	if !isURL(s.source.Location) {
		return nil
	}
	path := s.fetchedCatalog()
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	if err := s.keepCatalog(ctx, path); err != nil {
		return fmt.Errorf("fetch image catalogue: %w", err)
	}
	return nil
}

func (s *catalogue) keepCatalog(ctx context.Context, path string) error {
	body, err := open(ctx, s.source.Location)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(body, maxCatalog+1))
	if err != nil {
		return fault.New(fault.Unavailable, "%w", err)
	}
	if _, err := s.checkCatalog(text); err != nil {
		return err
	}
	return s.scratch.Scratch(ctx, func(work string) error {
		tmp := filepath.Join(work, "catalog")
		if err := os.WriteFile(tmp, text, 0o600); err != nil {
			return err
		}
		return errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.Rename(tmp, path))
	})
}

// parseCatalog reads and checks a catalogue.
func parseCatalog(text []byte) (map[string]Entry, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "read image catalogue: "+format, args...)
	}
	var c map[string]Entry
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, bad("%w", err)
	}
	whole := make(map[string]Entry, len(c))
	for name, e := range c {
		if err := validatePlain(name); err != nil {
			return nil, bad("%w", err)
		}
		if e.Base != "" {
			base, ok := c[e.Base]
			if !ok || base.Base != "" || base.Bundle != nil || e.Bundle != nil {
				return nil, bad("%s adds to %s, which is no whole recipe", name, e.Base)
			}
			e = e.onTopOf(base)
		}
		e.Name = name
		if err := e.validate(); err != nil {
			return nil, bad("%s: %w", name, err)
		}
		whole[name] = e
	}
	return whole, nil
}

// validate checks what the recipe hands to a shell and to the package manager, and what a bundle promises.
func (e Entry) validate() error {
	if e.Bundle != nil {
		return e.Bundle.validate()
	}
	if e.Suite == "" {
		return errors.New("neither suite nor bundle")
	}
	word, glob := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9@:.+_~-]*$`), regexp.MustCompile(`^/[A-Za-z0-9@:.+_~/*?-]*$`)
	for _, list := range []struct {
		words []string
		form  *regexp.Regexp
	}{
		{[]string{e.Suite, e.Variant}, word},
		{e.Packages, word},
		{e.Mask, word},
		{e.Remove, glob},
		{e.Exclude, glob},
		{slices.Collect(maps.Keys(e.Files)), glob},
	} {
		for _, w := range list.words {
			if w != "" && !list.form.MatchString(w) || strings.Contains(w, "/../") || strings.HasSuffix(w, "/..") {
				return fmt.Errorf("bad word %.100q", w)
			}
		}
	}
	return nil
}

// Catalog returns the entries of the catalogue, by name.
func (s *catalogue) Catalog() ([]Entry, error) {
	entries, err := s.catalog()
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		out = append(out, entries[name])
	}
	return out, nil
}
