package oci

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"banger/internal/fault"
	"banger/internal/progress"
)

// Options say how sources are reached.
type Options struct {
	CacheDir string // holds fetched layers and temporary files; may be emptied at any time
	// Mirrors are asked before the registry itself, in order. The key is a registry as people write it ("docker.io",
	// "ghcr.io:443"), a mirror is "host[:port][/prefix]" or a URL with that. What has a digest is checked against it,
	// but a tag is what the mirror says it is.
	Mirrors map[string][]string
	// MaxSize bounds the content of an image in bytes, unpacked, and MaxEntries the entries of its archives. 0: 16 GiB
	// and 2,097,152.
	MaxSize    int64
	MaxEntries int
	Keychain   authn.Keychain    // nil: Docker's and Podman's configuration of the user, with their credential helpers
	Transport  http.RoundTripper // nil: one made for registries; tests set it
	Log        *slog.Logger      // nil: silence
}

// Client opens images. It is safe for concurrent use and has nothing to be closed.
type Client struct {
	opts  Options
	log   *slog.Logger
	tempo tempo
}

// tempo is how patient a client is.
type tempo struct {
	stall    time.Duration // how long a peer may send next to nothing
	backoff  time.Duration // before the second attempt; doubles with each
	attempts int           // that may fail one after the other
	answer   time.Duration // for a manifest, a configuration or a token, all attempts and redirects included
}

// New returns a client. It does no I/O.
func New(o Options) *Client {
	if o.MaxSize == 0 {
		o.MaxSize = 16 << 30
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = 2 << 20
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Transport == nil {
		o.Transport = newTransport()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{opts: o, log: o.Log, tempo: tempo{
		stall: 30 * time.Second, backoff: 500 * time.Millisecond, attempts: 5, answer: 2 * time.Minute,
	}}
}

// Open finds an image and reads its manifest and configuration, but none of its layers. See [ParseReference] for what ref
// may be. The zero platform is linux on the architecture of this host. The caller closes the source.
//
// It fails with fault.NotFound if there is no such image, or none for the platform; fault.Denied if the registry wants
// other credentials; fault.Unavailable if it can't be reached; fault.Corrupt if what it sends isn't what it promised;
// fault.Unsupported if it is no image of a root filesystem.
func (c *Client) Open(ctx context.Context, ref string, p Platform) (*Source, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	want := wish{p.orHost(), p != Platform{}}
	if r.Transport == TransportRegistry {
		return c.openRegistry(ctx, r, want)
	}
	return c.openArchive(ctx, r, want)
}

// OpenArchive opens a file or directory and finds out itself what it is: an archive of "docker save", an OCI archive, an
// OCI layout in a directory, or a plain tar of a root filesystem; a file may be compressed with gzip, xz or zstd.
// A tag chooses one of several images in an archive; it may be empty if there is one. The caller closes the source.
func (c *Client) OpenArchive(ctx context.Context, path, tag string) (*Source, error) {
	return c.openArchive(ctx, Reference{Transport: transportAny, Path: path, Tag: tag}, wish{Platform: Platform{}.orHost()})
}

// orHost fills in what isn't said.
func (p Platform) orHost() Platform {
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return p
}

// String returns the platform as "os/architecture[/variant]".
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// ParsePlatform is the inverse of [Platform.String]. A word without a slash is an architecture on linux. Errors are
// fault.Invalid.
func ParsePlatform(s string) (Platform, error) {
	return parsePlatform(s)
}

// Source is an image that was opened. Its methods may be called one after the other.
type Source struct {
	image   Image
	layers  []*layer
	limits  limits
	literal bool    // a plain archive: no name in it is a whiteout
	fetch   fetcher // nil: all layers are here
	close   func() error
}

// limits bound what the archives of an image may hold.
type limits struct {
	bytes   int64 // of content, unpacked
	entries int   // of all archives
	memory  int64 // bytes of names, targets and attributes
}

// fetcher brings layers to this machine.
type fetcher interface {
	// fetch makes the layer's data available, or says why not. It is called from several goroutines.
	fetch(ctx context.Context, l *layer, sink progress.Sink) error
}

// Image returns what was found.
func (s *Source) Image() Image { return s.image }

// Close releases files. It may be called twice.
func (s *Source) Close() error {
	if s.close == nil {
		return nil
	}
	f := s.close
	s.close = nil
	return f()
}

// WriteTar writes the image's root filesystem as one tar stream: whiteouts are applied, no path comes twice, parents come
// before their children and files before the hard links to them. The order depends on nothing but the image.
//
// Layers that aren't here are fetched first, in parallel: what a broken connection or a killed process left of a layer
// is completed, not fetched again. All of them have been checked against their digests before the first byte is written.
//
// Archives that are damaged or aren't what the manifest promises fail with fault.Corrupt; those that hold what no root
// filesystem can hold, or too much of it, with fault.Invalid; a full disk with fault.Exhausted.
func (s *Source) WriteTar(ctx context.Context, w io.Writer, sink progress.Sink) error {
	return s.writeTar(ctx, w, sink)
}

// Prune removes layers and temporary files from the cache and returns how many bytes of the disk that freed, or would
// free if dryRun is set. It is safe while images are pulled: what is being fetched stays, what is being read is freed when
// its reader is done.
func (c *Client) Prune(ctx context.Context, dryRun bool) (freed int64, err error) {
	return c.prune(ctx, dryRun)
}

func parsePlatform(s string) (Platform, error) {
	parts := splitNonEmpty(s)
	switch len(parts) {
	case 1:
		return Platform{OS: "linux", Architecture: parts[0]}, nil
	case 2:
		return Platform{OS: parts[0], Architecture: parts[1]}, nil
	case 3:
		return Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}, nil
	}
	return Platform{}, fault.New(fault.Invalid, "bad platform %.100q", s).WithHint("write it as linux/amd64 or linux/arm/v7")
}
