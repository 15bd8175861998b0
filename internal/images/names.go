package images

import (
	"net/url"
	"strings"

	"banger/internal/fault"
	"banger/internal/oci"
)

// An image is called by a plain name ("debian-bookworm"), by a reference as registries have them, shortened as people
// write it ("alpine:3.20", "ghcr.io/org/app@sha256:..."), or by its digest.

// maxName bounds a name, in bytes: with its escapes it must fit into the name of a file.
const maxName = 200

// validatePlain checks a plain name.
func validatePlain(name string) error {
	bad := len(name) < 1 || len(name) > 63 || name[0] == '.' || name[0] == '-' || name == publishKey ||
		strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' })
	if bad {
		return fault.New(fault.Invalid, "bad image name %.80q", name).
			WithHint("use 1 to 63 characters of a-z, 0-9, - and ., beginning with a letter or digit; or a reference such as alpine:3.20")
	}
	return nil
}

// reference returns the form of a registry's reference that names an image here: without what everybody leaves out, and
// with a tag or digest.
func reference(ref string) (string, error) {
	parsed, err := oci.ParseReference(ref)
	if err != nil {
		return "", err
	}
	if parsed.Transport != oci.TransportRegistry {
		return "", fault.New(fault.Invalid, "%.200q names a file and no image of a registry", ref).
			WithHint("import it: banger image import %s", parsed.Path)
	}
	name := parsed.Familiar()
	if c := name[0]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
		return "", fault.New(fault.Invalid, "bad image reference %.80q", ref).WithHint("it has to begin with a letter or digit")
	}
	if len(url.QueryEscape(name)) > maxName {
		return "", fault.New(fault.Invalid, "the image reference %.80q is too long", ref).WithHint("use one of at most %d characters", maxName)
	}
	return name, nil
}

// NewName checks what a new image is to be called and returns it in the form that is kept: a plain name, or a reference.
func (s *Store) NewName(name string) (string, error) {
	if validatePlain(name) != nil {
		return reference(name)
	}
	entries, err := s.catalog()
	if err != nil {
		return "", err
	}
	if _, ok := entries[name]; ok {
		return "", fault.New(fault.Exists, "%q is the name of an image of the catalogue", name).WithHint("choose another name")
	}
	return name, nil
}

// meaning is what a name or reference stands for: exactly one of the fields is set.
type meaning struct {
	name   string // of an image that is here
	entry  *Entry // of the catalogue, not here yet
	ref    string // of a registry, and not here yet
	digest string // of an image
}

// key is the name that the image has here, or is going to have.
func (m meaning) key() string {
	switch {
	case m.name != "":
		return m.name
	case m.entry != nil:
		return m.entry.Name
	default:
		return m.ref
	}
}

// mean finds out what a reference stands for: a plain name that is here, one of the catalogue, a reference that is here, one
// of a registry, in this order. It looks at no registry.
func (s *Store) mean(ref string) (meaning, error) {
	if strings.HasPrefix(ref, "sha256:") {
		_, err := s.blobPath(ref)
		return meaning{digest: ref}, err
	}
	plainErr := validatePlain(ref)
	if plainErr == nil {
		if here, err := s.has(ref); here || err != nil {
			return meaning{name: ref}, err
		}
		entries, err := s.catalog()
		if err != nil {
			return meaning{}, err
		}
		if e, ok := entries[ref]; ok {
			return meaning{entry: &e}, nil
		}
	}
	name, err := reference(ref)
	if err != nil {
		if plainErr == nil {
			return meaning{}, s.unknown(ref)
		}
		return meaning{}, err
	}
	if here, err := s.has(name); here || err != nil {
		return meaning{name: name}, err
	}
	return meaning{ref: name}, nil
}

// fileOf returns the name of the file, without suffix, and of the lock that belong to an image's name.
func fileOf(name string) string { return strings.ReplaceAll(url.QueryEscape(name), "+", "%20") }

// nameOf is the inverse of fileOf.
func nameOf(file string) (string, bool) {
	name, err := url.QueryUnescape(file)
	return name, err == nil && fileOf(name) == file
}
