package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"aead.dev/minisign"
	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
	"banger/internal/oci"
	"banger/internal/progress"
)

// Bundle is an image that was made elsewhere: a tar, compressed by zstd, that holds "manifest.json" (a [bundleManifest]) and
// then "rootfs.tar", the root filesystem.
type Bundle struct {
	URL    string `json:"url"`    // https, or the absolute path of a file; plain http only for loopback addresses
	SHA256 string `json:"sha256"` // of the bundle, in hexadecimal
	// Minisign is a public key of minisign, "RW...", base64. If it is given, URL with ".minisig" at its end must be a signature
	// of the bundle by that key.
	Minisign string `json:"minisign"`
	Size     int64  `json:"size"` // bytes; 0: not known
}

// bundleManifest is what a bundle says of its image.
type bundleManifest struct {
	Config oci.Config `json:"config"`
}

func (b Bundle) validate() error {
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(b.SHA256) {
		return errors.New("the bundle has no SHA-256 in hexadecimal")
	}
	if b.Size < 0 || !filepath.IsAbs(b.URL) && !isURL(b.URL) {
		return errors.New("bad size or URL of the bundle: write https://... or an absolute path")
	}
	if b.Minisign != "" {
		if _, err := b.key(); err != nil {
			return fmt.Errorf("bad public key of the bundle: %w", err)
		}
	}
	return nil
}

// key parses the public key.
func (b Bundle) key() (minisign.PublicKey, error) {
	var key minisign.PublicKey
	err := key.UnmarshalText([]byte(b.Minisign))
	return key, err
}

// maxSignature bounds a signature's file with its comments, in bytes.
const maxSignature = 16 << 10

// verify compares what was read of a bundle with its signature.
func (b Bundle) verify(ctx context.Context, read *minisign.Reader) error {
	key, err := b.key()
	if err != nil {
		return err
	}
	file, err := open(ctx, b.URL+".minisig")
	if err != nil {
		return fmt.Errorf("fetch the bundle's signature: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(file, maxSignature))
	if err != nil {
		return fmt.Errorf("fetch the bundle's signature: %w", err)
	}
	if !read.Verify(key, text) {
		return fault.New(fault.Corrupt, "the bundle's signature is not one by the key that the catalogue names").
			WithHint("ask whoever publishes %s; do not use it until then", b.URL)
	}
	return nil
}

// isURL reports whether a location is one of the URLs that are fetched: https, or http from this machine.
func isURL(location string) bool {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

func hexSum(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// stallTimeout is how long a server may send nothing.
const stallTimeout = 30 * time.Second

// open opens a URL or a file. A server that stalls ends the reading.
func open(ctx context.Context, location string) (io.ReadCloser, error) {
	if !isURL(location) {
		f, err := os.Open(location)
		if err != nil {
			return nil, fault.New(fault.NotFound, "%w", err)
		}
		return f, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stalled := time.AfterFunc(stallTimeout, func() {
		cancel(fault.New(fault.Timeout, "%s sends nothing for %s", location, stallTimeout))
	})
	end := func() { stalled.Stop(); cancel(nil) }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		end()
		return nil, err
	}
	client := &http.Client{CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if len(via) > 5 || !isURL(to.URL.String()) {
			return fmt.Errorf("it redirects to %s", to.URL.Redacted())
		}
		return nil
	}}
	res, err := client.Do(req)
	if err != nil {
		end()
		return nil, fault.New(fault.Unavailable, "%w", errors.Join(context.Cause(ctx), err))
	}
	if res.StatusCode != http.StatusOK {
		end()
		_ = res.Body.Close()
		return nil, fault.New(fault.NotFound, "%s answers %s", location, res.Status)
	}
	return &watched{ctx: ctx, body: res.Body, stalled: stalled, end: end}, nil
}

// watched is a body whose reading ends when the server stalls.
type watched struct {
	ctx     context.Context //nolint:containedctx // of the request, to tell why it ended
	body    io.ReadCloser
	stalled *time.Timer
	end     func()
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.body.Read(p)
	w.stalled.Reset(stallTimeout)
	if err != nil && !errors.Is(err, io.EOF) && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	return n, err
}

func (w *watched) Close() error {
	w.end()
	return w.body.Close()
}

// unbundle makes an image of a bundle. Nothing is published before all of the bundle has been read and its digest is right.
func (s *shelf) unbundle(ctx context.Context, work string, e Entry, sink progress.Sink) error {
	if e.Bundle.Size > 0 {
		if err := checkSpace(work, e.Bundle.Size*(layerRoom-1)); err != nil {
			return err
		}
	}
	body, err := open(ctx, e.Bundle.URL)
	if err != nil {
		return fmt.Errorf("fetch bundle: %w", err)
	}
	defer body.Close() //nolint:errcheck // only read
	signed := minisign.NewReader(body)
	sum := &summed{r: signed, hash: sha256.New(), sink: sink, stage: "fetch bundle " + path.Base(e.Bundle.URL), total: e.Bundle.Size}
	c := content{name: e.Name, about: nameFile{Source: "catalog:" + e.Name, Config: &oci.Config{}}}
	c.tar = func(_ context.Context, w io.Writer) error { return sum.unpack(w, c.about.Config) }
	end := sink.Stage(sum.stage)
	file, about, blob, err := convert(ctx, work, c)
	if err == nil {
		err = sum.check(e.Bundle.SHA256)
	}
	if err == nil && e.Bundle.Minisign != "" {
		err = e.Bundle.verify(ctx, signed)
	}
	end(err)
	if err != nil {
		return err
	}
	return s.publish(ctx, e.Name, file, blob, about)
}

// summed reads a bundle and computes its digest.
type summed struct {
	r     io.Reader
	hash  hash.Hash
	sink  progress.Sink
	stage string
	count int64
	total int64
	told  int64 // of count, when the sink was told
}

// tellStep is how many bytes pass between two reports.
const tellStep = 1 << 20

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.hash.Write(p[:n])
	if s.count += int64(n); s.count-s.told >= tellStep {
		s.told = s.count
		s.sink.Send(progress.Update{Stage: s.stage, Current: s.count, Total: s.total, Unit: "bytes"})
	}
	return n, err
}

// Bounds of what a bundle may ask for, in bytes.
const (
	maxManifest = 1 << 20
	maxWindow   = 128 << 20 // of zstd, as "zstd --long=27" makes it
)

// unpack writes the root filesystem of the bundle and reads what it says of the image.
func (s *summed) unpack(w io.Writer, config *oci.Config) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Corrupt, "the bundle is damaged: "+format, args...)
	}
	z, err := zstd.NewReader(s, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	t := tar.NewReader(z)
	for _, want := range []string{"manifest.json", "rootfs.tar"} {
		h, err := t.Next()
		if err != nil {
			return bad("%w", err)
		}
		if path.Clean(h.Name) != want || h.Typeflag != tar.TypeReg {
			return bad("%.100q where %s should be", h.Name, want)
		}
		if want == "rootfs.tar" {
			if _, err := io.Copy(w, t); err != nil {
				return err
			}
			continue
		}
		var m bundleManifest
		if err := json.NewDecoder(io.LimitReader(t, maxManifest)).Decode(&m); err != nil {
			return bad("manifest.json: %w", err)
		}
		*config = m.Config
	}
	return nil
}

// check reads the rest and compares the digest.
func (s *summed) check(want string) error {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return err
	}
	if got := hex.EncodeToString(s.hash.Sum(nil)); got != strings.ToLower(want) {
		return fault.New(fault.Corrupt, "the bundle has the SHA-256 %s, and the catalogue says %s", got, want)
	}
	return nil
}
