package oci

import (
	"net"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"banger/internal/fault"
)

// How an image is reached.
const (
	TransportRegistry      = "docker"         // a registry, over HTTPS
	TransportLayout        = "oci"            // a directory with an OCI layout
	TransportOCIArchive    = "oci-archive"    // a tar of that
	TransportDockerArchive = "docker-archive" // what "docker save" writes

	transportAny = "" // a file or directory: look what it is
)

// Reference is the parsed name of an image.
type Reference struct {
	Transport  string // one of the constants
	Registry   string // "docker.io", "localhost:5000"
	Repository string // "library/alpine"
	Path       string // of a file or directory, for the other transports
	Tag        string // "latest" if nothing else was said, for registries; empty with a digest
	Digest     string // "sha256:...", or empty
}

// ParseReference takes an image's name apart: "alpine", "alpine:3.20", "ghcr.io/owner/name@sha256:...", the same with
// "docker://" before it, "oci:dir[:tag]", "oci-archive:file[:tag]", "docker-archive:file[:reference]". It only looks at
// the form. Errors are fault.Invalid and say what is wrong.
func ParseReference(ref string) (Reference, error) {
	for _, transport := range []string{TransportLayout, TransportOCIArchive, TransportDockerArchive} {
		rest, ok := strings.CutPrefix(ref, transport+":")
		// "oci:5000/name" and "oci:3.20" may be meant for a registry, but these prefixes are taken, as in skopeo.
		if !ok {
			continue
		}
		path, tag, _ := strings.Cut(rest, ":")
		if path == "" || strings.ContainsRune(rest, 0) {
			return Reference{}, fault.New(fault.Invalid, "bad image reference %.200q: no path after %q", ref, transport+":")
		}
		return Reference{Transport: transport, Path: path, Tag: tag}, nil
	}
	if strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, ".") {
		return Reference{}, fault.New(fault.Invalid, "bad image reference %.200q: it looks like a path", ref).
			WithHint("write oci:DIRECTORY, oci-archive:FILE or docker-archive:FILE for what is in files")
	}
	r, err := parseName(strings.TrimPrefix(ref, "docker://"))
	if err != nil {
		return Reference{}, fault.New(fault.Invalid, "bad image reference %.200q: %s", ref, why(err)).
			WithHint("write it as NAME[:TAG], HOST/NAME[:TAG] or HOST/NAME@sha256:DIGEST")
	}
	out := Reference{
		Transport: TransportRegistry, Registry: familiarHost(r.Context().RegistryStr()), Repository: r.Context().RepositoryStr(),
	}
	if d, ok := r.(name.Digest); ok {
		out.Digest = d.DigestStr()
	} else {
		out.Tag = r.Identifier()
	}
	return out, nil
}

func parseName(ref string) (name.Reference, error) {
	if host, _, ok := strings.Cut(ref, "/"); ok && isLoopback(host) {
		return name.ParseReference(ref, name.Insecure)
	}
	return name.ParseReference(ref)
}

// why shortens an error of the name parser, which repeats the name and shows all that is allowed.
func why(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if len(text) > 300 {
		text = text[:300] + "..."
	}
	return text
}

// hub is Docker's registry: people call it docker.io, it answers elsewhere.
const hub = "docker.io"

func familiarHost(host string) string {
	if host == name.DefaultRegistry {
		return hub
	}
	return host
}

// String returns the reference in full: "docker.io/library/alpine:3.20", "oci:dir:tag".
func (r Reference) String() string {
	if r.Transport != TransportRegistry {
		s := r.Path
		if r.Transport != transportAny {
			s = r.Transport + ":" + s
		}
		if r.Tag != "" {
			s += ":" + r.Tag
		}
		return s
	}
	return r.Registry + "/" + r.Repository + r.suffix()
}

// Familiar returns the reference as people write it, "alpine:3.20": without what Docker's registry implies, but always with
// the tag or digest.
func (r Reference) Familiar() string {
	if r.Transport != TransportRegistry {
		return r.String()
	}
	if r.Registry != hub {
		return r.String()
	}
	return strings.TrimPrefix(r.Repository, "library/") + r.suffix()
}

func (r Reference) suffix() string {
	if r.Digest != "" {
		return "@" + r.Digest
	}
	return ":" + r.Tag
}

// isLoopback reports whether a host, with or without a port, is this machine.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func splitNonEmpty(s string) []string {
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if p == "" || len(p) > 32 {
			return nil
		}
	}
	return parts
}
