package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"banger/internal/fault"
	"banger/internal/progress"
)

// endless writes until nobody reads any more.
func endless(w http.ResponseWriter, r *http.Request) {
	junk := bytes.Repeat([]byte("x"), 64<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(junk); err != nil {
			return
		}
	}
}

func TestLyingRegistry(t *testing.T) {
	t.Parallel()
	data := archiveOf(t, file("a", random(300000)))
	on := func(part string, f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			f(w, r)
			return true
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) } //nolint:errcheck // a test
	}
	layer := digestOf(data)
	image := func(layers ...v1.Descriptor) string {
		m, err := json.Marshal(map[string]any{"schemaVersion": 2, "config": v1.Descriptor{Digest: hashOf(t, layer), Size: 5}, "layers": layers})
		if err != nil {
			t.Fatal(err)
		}
		return string(m)
	}
	for name, tt := range map[string]struct {
		lie  func(http.ResponseWriter, *http.Request) bool
		kind fault.Kind
		text string
		most int // requests
	}{
		"other layer":     {on(layer, say(strings.Repeat("x", len(data)))), fault.Corrupt, "digest", 5},
		"short layer":     {on(layer, say("x")), fault.Unavailable, "breaks off", 10},
		"endless layer":   {on(layer, endless), fault.Corrupt, "more than", 5},
		"layer loop":      {on(layer, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }), fault.Unavailable, "too many redirects", 20},
		"layer missing":   {on(layer, status(404)), fault.NotFound, "no such image or layer", 5},
		"layer forbidden": {on(layer, status(403)), fault.Denied, "refuses", 5},
		"layer stalls": {on(layer, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "x") //nolint:errcheck // a test
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), fault.Unavailable, "stopped sending", 10},
		"no answer": {on(layer, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), fault.Unavailable, "stopped sending", 10},
		"wrong range": {on(layer, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 0-9/10")
				w.WriteHeader(http.StatusPartialContent)
			}
			w.Write(data[:100]) //nolint:errcheck // a test
		}), fault.Unavailable, "", 12},
		"endless manifest":  {on("/manifests/", endless), fault.Corrupt, "more than 4194304 bytes", 8},
		"no manifest":       {on("/manifests/", status(404)), fault.NotFound, "no such image", 8},
		"manifest is text":  {on("/manifests/", say("<html>")), fault.Corrupt, "damaged", 8},
		"manifest is empty": {on("/manifests/", say("{}")), fault.Unsupported, "not that of an image", 8},
		"nested index": {on("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"schemaVersion":2,"manifests":[{"digest":"%s","size":3}]}`, "sha256:"+strings.Repeat("0", 64)) //nolint:errcheck // a test
		}), fault.Corrupt, "digest", 8},
		"schema 1": {on("/manifests/", say(`{"schemaVersion":1}`)), fault.Unsupported, "schema 1", 8},
		"manifest's digest": {on("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			fmt.Fprint(w, "{}") //nolint:errcheck // a test
		}), fault.Corrupt, "says it is", 8},
		"negative size":   {on("/manifests/", say(image(v1.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: hashOf(t, layer), Size: -1}))), fault.Corrupt, "-1 bytes", 8},
		"other digest":    {on("/manifests/", say(image(v1.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar", Digest: v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("0", 128)}, Size: 1}))), fault.Unsupported, "SHA-256", 8},
		"artifact":        {on("/manifests/", say(image(v1.Descriptor{MediaType: "application/vnd.cncf.helm.chart", Digest: hashOf(t, layer), Size: 1}))), fault.Unsupported, "helm", 8},
		"errors for ever": {on("/manifests/", status(503)), fault.Unavailable, "503", 10},
		"storm of 401":    {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(401); return true }, fault.Denied, "refuses", 10},
		"401 with a realm": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
			w.WriteHeader(401)
			return true
		}, fault.Denied, "refuses", 10},
		"endless token": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				endless(w, r)
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
			w.WriteHeader(401)
			return true
		}, fault.Unavailable, "", 10},
		"ping loop": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}, fault.Unavailable, "", 60},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.push(t, "app", data)
			h.lie(tt.lie)
			c := testClient(t, Options{})
			if strings.Contains(tt.text, "stopped") {
				c.tempo.stall = 200 * time.Millisecond
			}
			_, err := pulled(t, c, h.addr()+"/app")
			if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%v), want %v: %s", err, fault.KindOf(err), tt.kind, tt.text)
			}
			if n := h.asked("/"); n > tt.most {
				t.Errorf("%d requests, more than %d", n, tt.most)
			}
			if found, err := filepath.Glob(filepath.Join(c.opts.CacheDir, blobs, "*")); err != nil || len(found) > 0 {
				t.Errorf("published: %v, %v", found, err)
			}
		})
	}
}

func hashOf(t *testing.T, digest string) v1.Hash {
	t.Helper()
	h, err := v1.NewHash(digest)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestLayersMustBeThoseOfTheConfiguration(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a, b := archiveOf(t, file("a", "1")), archiveOf(t, file("b", "2"))
	img := imageOf(t, a)
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs[0] = hashOf(t, digestOf(b))
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	h.write(t, "app", img)
	if _, err := pulled(t, testClient(t, Options{}), h.addr()+"/app"); !fault.Is(err, fault.Corrupt) {
		t.Errorf("got %v", err)
	}
}

func TestNoPlainHTTP(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	c := testClient(t, Options{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		asked <- r.URL.String()
		return nil, fmt.Errorf("no network here")
	})})
	for _, host := range []string{"10.0.0.1:5000", "192.168.1.1", "registry.example", "127.0.0.1.example"} {
		if _, err := c.Open(t.Context(), host+"/app", Platform{}); err == nil {
			t.Errorf("%s was reached", host)
		}
	}
	close(asked)
	for url := range asked {
		if !strings.HasPrefix(url, "https://") {
			t.Errorf("%s was asked for", url)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// keys is a keychain that has credentials for one host.
type keys struct{ host string }

func (k keys) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() == k.host {
		return &authn.Basic{Username: "user", Password: "secret"}, nil
	}
	return authn.Anonymous, nil
}

// Credentials, and the tokens they are changed for, go to the registry and to nobody that it redirects to.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			data := archiveOf(t, file("a", "1"))
			var mu sync.Mutex
			var leaked []string
			reached := 0
			other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				reached++
				if a := r.Header.Get("Authorization"); a != "" {
					leaked = append(leaked, a)
				}
				w.Write(data) //nolint:errcheck // a test
			}))
			defer other.Close()
			h := newHost(t)
			h.push(t, "app", data)
			good := 0
			h.lie(func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				user, pass, basic := r.BasicAuth()
				if r.URL.Path == "/token" && basic && user == "user" && pass == "secret" {
					fmt.Fprint(w, `{"token":"ticket"}`) //nolint:errcheck // a test
					return true
				}
				if scheme == "Basic" && (!basic || pass != "secret") || scheme == "Bearer" && r.Header.Get("Authorization") != "Bearer ticket" {
					w.Header().Set("WWW-Authenticate", scheme+` realm="http://`+r.Host+`/token",service="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				good++
				if strings.Contains(r.URL.Path, digestOf(data)) {
					http.Redirect(w, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)+"/signed", http.StatusTemporaryRedirect)
					return true
				}
				return false
			})
			c := testClient(t, Options{Keychain: keys{h.addr()}})
			if _, err := pulled(t, c, h.addr()+"/app"); err != nil {
				t.Fatal(err)
			}
			if good < 3 || reached != 1 || len(leaked) > 0 {
				t.Errorf("%d good requests, %d redirected, leaked: %q", good, reached, leaked)
			}
		})
	}
}

func TestPullEndsWithItsContext(t *testing.T) {
	t.Parallel()
	data := archiveOf(t, file("a", random(100000)))
	h := newHost(t)
	h.push(t, "app", data)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h.lie(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, digestOf(data)) {
			return false
		}
		w.Write(data[:50000]) //nolint:errcheck // a test
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	c := testClient(t, Options{})
	s, err := c.Open(ctx, h.addr()+"/app", Platform{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test
	err = s.WriteTar(ctx, &bytes.Buffer{}, func(u progress.Update) {
		if u.Current > 0 {
			cancel()
		}
	})
	if !fault.Is(err, fault.Canceled) {
		t.Errorf("got %v (%v)", err, fault.KindOf(err))
	}
	if _, err := os.Stat(c.cache().file(partial, Layer{Digest: digestOf(data)})); err != nil {
		t.Errorf("what was fetched is lost: %v", err)
	}
}

// A manifest may be anything: it must end in an image or in an error that has a kind.
func FuzzManifest(f *testing.F) {
	data := archiveOf(f, file("a", "1"))
	img := imageOf(f, data)
	m, err := img.RawManifest()
	if err != nil {
		f.Fatal(err)
	}
	cf, err := img.RawConfigFile()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m, cf)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+digestOf(m)+`","platform":{"os":"linux","architecture":"amd64"}}]}`), cf)
	f.Add([]byte(`{"manifests":[null]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		got, layers, err := assemble(context.Background(), rawShelf{manifest, config}, v1.Descriptor{}, wish{Platform: Platform{}.orHost()})
		switch {
		case err != nil && fault.KindOf(err) == fault.Internal:
			t.Errorf("an error without a kind: %v", err)
		case err == nil && (len(layers) != len(got.Layers) || len(layers) > maxLayers || !isDigest(got.Digest)):
			t.Errorf("%+v with %d layers", got, len(layers))
		}
	})
}

type rawShelf struct{ m, c []byte }

func (s rawShelf) manifest(context.Context, v1.Descriptor) ([]byte, error) { return s.m, nil }
func (s rawShelf) config(context.Context, v1.Descriptor) ([]byte, error)   { return s.c, nil }
