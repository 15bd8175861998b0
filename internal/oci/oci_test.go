package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// item is an entry of an archive.
type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
}

func dir(name string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o711}, ""}
}

func symlink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

func hardlink(name, target string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

func archiveOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		h := it.Header
		h.Size = int64(len(it.content))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, it.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressed(t testing.TB, how compression, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case gzipped:
		w = gzip.NewWriter(&b)
	case zstded:
		w, err = zstd.NewWriter(&b)
	case xzipped:
		w, err = xz.NewWriter(&b)
	default:
		return data
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entryOf is what a tar says of an entry, with its content.
type entryOf struct {
	h       *tar.Header
	content string
}

// listing reads a flattened archive, and fails if it breaks the promises of WriteTar.
func listing(t testing.TB, r io.Reader) map[string]entryOf {
	t.Helper()
	tr := tar.NewReader(r)
	seen := map[string]entryOf{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return seen
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if _, ok := seen[name]; ok {
			t.Errorf("%q comes twice", name)
		}
		parent := "."
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			parent = name[:i]
		}
		if p, ok := seen[parent]; name != "." && (!ok || p.h.Typeflag != tar.TypeDir) {
			t.Errorf("%q comes before its parent", name)
		}
		if _, ok := seen[h.Linkname]; h.Typeflag == tar.TypeLink && !ok {
			t.Errorf("%q is a link to %q, which has not come yet", name, h.Linkname)
		}
		seen[name] = entryOf{h, string(content)}
	}
}

// brief shows a listing: a line for each entry, "name kind detail".
func brief(all map[string]entryOf) map[string]string {
	out := map[string]string{}
	for name, e := range all {
		switch e.h.Typeflag {
		case tar.TypeDir:
			out[name] = fmt.Sprintf("dir %04o", e.h.Mode)
		case tar.TypeSymlink:
			out[name] = "-> " + e.h.Linkname
		case tar.TypeLink:
			out[name] = "= " + e.h.Linkname
		case tar.TypeReg:
			out[name] = e.content
		default:
			out[name] = fmt.Sprintf("%c %d,%d", e.h.Typeflag, e.h.Devmajor, e.h.Devminor)
		}
	}
	delete(out, ".")
	return out
}

func testLimits() limits { return limits{bytes: 1 << 30, entries: 1 << 20, memory: maxMemory} }

// flatten writes a source of layers that are already here.
func flatten(t testing.TB, l limits, layers ...[]byte) (map[string]entryOf, error) {
	t.Helper()
	s := &Source{limits: l}
	for _, data := range layers {
		s.layers = append(s.layers, &layer{data: io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))})
	}
	var out bytes.Buffer
	if err := s.WriteTar(context.Background(), &out, nil); err != nil {
		return nil, err
	}
	return listing(t, &out), nil
}

// host is a registry in this process, with a handler before it that may answer in its place.
type host struct {
	*httptest.Server
	mu     sync.Mutex
	before func(w http.ResponseWriter, r *http.Request) (done bool)
	seen   []*http.Request
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{}
	inner := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.seen = append(h.seen, r.Clone(context.Background()))
		before := h.before
		h.mu.Unlock()
		if before == nil || !before(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *host) lie(f func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before, h.seen = f, nil
}

// asked counts the requests whose path holds a text.
func (h *host) asked(part string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, r := range h.seen {
		if strings.Contains(r.URL.Path, part) {
			n++
		}
	}
	return n
}

func (h *host) addr() string { return strings.TrimPrefix(h.URL, "http://") }

// push publishes an image of these layers and returns it.
func (h *host) push(t testing.TB, ref string, layers ...[]byte) v1.Image {
	t.Helper()
	img := imageOf(t, layers...)
	h.write(t, ref, img)
	return img
}

func (h *host) write(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(h.addr() + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
}

// blob is a layer with the digest of what it has unpacked.
type blob struct {
	v1.Layer
	diff v1.Hash
}

func (b blob) DiffID() (v1.Hash, error) { return b.diff, nil }

func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: Platform{}.orHost().Architecture, Created: v1.Time{Time: time.Unix(1700000000, 0).UTC()},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Cmd: []string{"sh", "-c", "id"}, Entrypoint: []string{"/entry"}, Env: []string{"A=b"}, User: "1:2", WorkingDir: "/w",
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, Volumes: map[string]struct{}{"/v": {}}, StopSignal: "SIGINT",
			Labels: map[string]string{"l": "m"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range layers {
		kind, raw := types.OCIUncompressedLayer, data
		switch sniff(data) {
		case gzipped:
			kind, raw = types.OCILayer, unpacked(t, data)
		case zstded:
			kind, raw = types.OCILayerZStd, unpacked(t, data)
		default:
		}
		sum := sha256.Sum256(raw)
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: blob{static.NewLayer(data, kind), v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}, MediaType: kind,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func unpacked(t testing.TB, data []byte) []byte {
	t.Helper()
	r, release, err := decompress(bytes.NewReader(data), sniff(data), data)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// testClient is anonymous and impatient.
func testClient(t testing.TB, o Options) *Client {
	t.Helper()
	if o.CacheDir == "" {
		o.CacheDir = t.TempDir()
	}
	if o.Keychain == nil {
		o.Keychain = authn.NewMultiKeychain()
	}
	c := New(o)
	c.tempo = tempo{stall: 20 * time.Second, backoff: time.Millisecond, attempts: 3, answer: time.Minute}
	return c
}

// pulled opens and writes an image.
func pulled(t testing.TB, c *Client, ref string) (map[string]entryOf, error) {
	t.Helper()
	s, err := c.Open(context.Background(), ref, Platform{})
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // a test
	var out bytes.Buffer
	if err := s.WriteTar(context.Background(), &out, nil); err != nil {
		return nil, err
	}
	return listing(t, &out), nil
}
