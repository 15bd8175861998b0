package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
)

// tarOf makes a tar of files, in the order of names and contents.
func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o755, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg})
		_, werr := io.WriteString(w, files[i+1])
		if err := errors.Join(err, werr); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressed(t *testing.T, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll(data, nil)
}

func TestBundle(t *testing.T) {
	t.Parallel()
	const manifest = `{"config":{"cmd":["serve"]}}`
	root := string(tarOf(t, "usr/lib/systemd/systemd", "x"))
	whole := compressed(t, tarOf(t, "manifest.json", manifest, "rootfs.tar", root))
	tests := []struct {
		name   string
		bundle []byte
		sum    string
		kind   fault.Kind
	}{
		{"whole", whole, hexSum(whole), 0},
		{"wrong sum", whole, hexSum([]byte("x")), fault.Corrupt},
		{"cut", whole[:len(whole)/2], hexSum(whole), fault.Corrupt},
		{"no manifest", compressed(t, tarOf(t, "rootfs.tar", root)), "", fault.Corrupt},
		{"no zstd", []byte("junk that is no bundle"), "", fault.Corrupt},
		{"bad manifest", compressed(t, tarOf(t, "manifest.json", "{", "rootfs.tar", root)), "", fault.Corrupt},
		{"root is no tar", compressed(t, tarOf(t, "manifest.json", manifest, "rootfs.tar", strings.Repeat("junk", 1000))), "", fault.Corrupt},
		{"path out of the root", compressed(t, tarOf(t, "manifest.json", manifest, "rootfs.tar", string(tarOf(t, "../x", "y")))), "", fault.Invalid},
	}
	for _, tt := range tests {
		if tt.sum == "" {
			tt.sum = hexSum(tt.bundle)
		}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tt.bundle) }))
		file := filepath.Join(t.TempDir(), "bundle")
		if err := os.WriteFile(file, tt.bundle, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, location := range []string{server.URL + "/bundle", file} {
			s := newPuller(t, &fakeSources{}, nil)
			s.source.Location = filepath.Join(t.TempDir(), "catalog.json")
			text := fmt.Sprintf(`{"mine": {"description": "d", "bundle": {"url": %q, "sha256": %q}}}`, location, tt.sum)
			if err := os.WriteFile(s.source.Location, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			img, err := s.Ensure(t.Context(), "mine", nil)
			if tt.kind == 0 {
				if err != nil || !img.HasSystemd || len(img.Config.Cmd) != 1 || img.Source != "catalog:mine" {
					t.Errorf("%s: %+v, %v", tt.name, img, err)
				}
				continue
			}
			if !fault.Is(err, tt.kind) {
				t.Errorf("%s: %v", tt.name, err)
			}
			if items, err := s.Items(t.Context()); err != nil || len(items) != 0 {
				t.Errorf("%s: published %v, %v", tt.name, items, err)
			}
		}
		server.Close()
	}
}

// A bundle whose entry names a key is taken only with a signature by that key.
func TestSignedBundle(t *testing.T) {
	t.Parallel()
	bundle := compressed(t, tarOf(t, "manifest.json", "{}", "rootfs.tar", string(tarOf(t, "bin/sh", "x"))))
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key minisign.PrivateKey, text []byte) []byte {
		r := minisign.NewReader(bytes.NewReader(text))
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		return r.Sign(key) // prehashed, as minisign does since 0.10
	}
	for _, tt := range []struct {
		name      string
		signature []byte
		kind      fault.Kind
	}{
		{"genuine", sign(private, bundle), 0},
		{"by a stranger", sign(stranger, bundle), fault.Corrupt},
		{"of something else", sign(private, bundle[1:]), fault.Corrupt},
		{"no signature", []byte("junk"), fault.Corrupt},
		{"missing", nil, fault.NotFound},
	} {
		file := filepath.Join(t.TempDir(), "bundle")
		if err := os.WriteFile(file, bundle, 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.signature != nil {
			if err := os.WriteFile(file+".minisig", tt.signature, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := newPuller(t, &fakeSources{}, nil)
		s.source.Location = filepath.Join(t.TempDir(), "catalog.json")
		text := fmt.Sprintf(`{"mine": {"description": "d", "bundle": {"url": %q, "sha256": %q, "minisign": %q}}}`, file, hexSum(bundle), public)
		if err := os.WriteFile(s.source.Location, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Ensure(t.Context(), "mine", nil); fault.KindOf(err) != tt.kind && (err != nil || tt.kind != 0) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if items, err := s.Items(t.Context()); err != nil || (len(items) == 1) != (tt.kind == 0) {
			t.Errorf("%s: published %v, %v", tt.name, items, err)
		}
	}
}

func TestFetchedCatalog(t *testing.T) {
	t.Parallel()
	const text = `{"mine": {"suite": "bookworm", "description": "d"}}`
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked++; _, _ = io.WriteString(w, text) }))
	defer server.Close()
	s := newPuller(t, &fakeSources{}, nil)
	s.source = CatalogSource{Location: server.URL, SHA256: hexSum([]byte("another"))}
	if _, err := s.Available(t.Context()); !fault.Is(err, fault.Corrupt) {
		t.Errorf("wrong digest: %v", err)
	}
	s.source.SHA256 = hexSum([]byte(text))
	for range 2 {
		if list, err := s.Available(t.Context()); err != nil || len(list) != 1 || list[0].Name != "mine" {
			t.Errorf("%v, %v", list, err)
		}
	}
	if asked != 2 {
		t.Errorf("fetched %d times", asked)
	}
	if _, err := s.Ensure(t.Context(), "mine", nil); err != nil {
		t.Error(err)
	}
}

func TestParseCatalog(t *testing.T) {
	t.Parallel()
	if _, err := parseCatalog(catalogJSON); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"no JSON": "{", "bad name": `{"A b": {"suite": "x"}}`, "neither": `{"a": {}}`,
		"shell": `{"a": {"suite": "x", "remove": ["/x; rm -rf /"]}}`, "option": `{"a": {"suite": "x", "packages": ["-o"]}}`,
		"out": `{"a": {"suite": "x", "remove": ["/../etc"]}}`, "no base": `{"a": {"base": "b"}}`,
		"no key": `{"a": {"bundle": {"url": "https://h/x", "minisign": "RWx", "sha256": "` + strings.Repeat("a", 64) + `"}}}`,
		"no sum": `{"a": {"bundle": {"url": "https://h/x"}}}`, "plain http": `{"a": {"bundle": {"url": "http://h/x", "sha256": "` + strings.Repeat("a", 64) + `"}}}`,
	} {
		if _, err := parseCatalog([]byte(text)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
