package kernels

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"

	"banger/internal/fault"
)

// recipe is an entry of the catalogue: a Debian metapackage, or a file to download.
type recipe struct {
	Description string `json:"description"`
	Arch        string `json:"arch"`
	Suite       string `json:"suite,omitempty"`
	Package     string `json:"package,omitempty"` // a metapackage that depends on the newest kernel package
	URL         string `json:"url,omitempty"`     // of a package (.deb, .rpm), a bzImage or a vmlinux
	SHA256      string `json:"sha256,omitempty"`  // of what is there, in hex
}

//go:embed catalog.json
var catalogJSON []byte

// maxCatalog bounds a catalogue's file, in bytes.
const maxCatalog = 1 << 20

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// readCatalog returns the entries that this program has, with those of the configured file over them.
func (s *Store) readCatalog() (map[string]recipe, error) {
	var c map[string]recipe
	if err := json.Unmarshal(catalogJSON, &c); err != nil {
		return nil, fmt.Errorf("read kernel catalogue: %w", err)
	}
	if s.catalogue == "" {
		return c, nil
	}
	f, err := openRegular(s.catalogue)
	if err == nil && f == nil {
		err = errors.New("it is a directory")
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "read kernel catalogue %s: %w", s.catalogue, err).
			WithHint("the configuration names it: kernels.catalog")
	}
	defer f.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(f, maxCatalog))
	if err != nil {
		return nil, fmt.Errorf("read kernel catalogue: %w", err)
	}
	more, err := parseCatalog(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, "kernel catalogue %s: %w", s.catalogue, err).
			WithHint("an entry has description, arch, and either suite and package, or url and sha256")
	}
	maps.Copy(c, more)
	return c, nil
}

func parseCatalog(text []byte) (map[string]recipe, error) {
	var c map[string]recipe
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, err
	}
	for name, r := range c {
		if err := validateName(name); err != nil {
			return nil, err
		}
		u, err := url.Parse(r.URL)
		fromURL := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && hexDigest.MatchString(r.SHA256)
		fromSuite := r.URL == "" && r.Suite != "" && r.Package != ""
		if r.Arch == "" || !fromURL && !fromSuite {
			return nil, fmt.Errorf("the entry %q is incomplete or wrong", name)
		}
	}
	return c, nil
}

// Available is an entry of the catalogue.
type Available struct{ Name, Description, Arch, Source string }

// Catalog returns what Ensure can make, by name.
func (s *Store) Catalog() ([]Available, error) {
	entries, err := s.readCatalog()
	if err != nil {
		return nil, err
	}
	var out []Available
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		r := entries[name]
		source := "Debian " + r.Suite + ", " + r.Package
		if r.URL != "" {
			source = r.URL
		}
		out = append(out, Available{Name: name, Description: r.Description, Arch: r.Arch, Source: source})
	}
	return out, nil
}
