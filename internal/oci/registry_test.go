package oci

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"banger/internal/fault"
	"banger/internal/progress"
)

func TestParseReference(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string][2]string{
		"alpine":                        {"docker.io/library/alpine:latest", "alpine:latest"},
		"alpine:3.20":                   {"docker.io/library/alpine:3.20", "alpine:3.20"},
		"docker://alpine:3.20":          {"docker.io/library/alpine:3.20", "alpine:3.20"},
		"docker.io/library/alpine:3.20": {"docker.io/library/alpine:3.20", "alpine:3.20"},
		"index.docker.io/a/b":           {"docker.io/a/b:latest", "a/b:latest"},
		"a/b@" + digest:                 {"docker.io/a/b@" + digest, "a/b@" + digest},
		"ghcr.io/a/b:t@" + digest:       {"ghcr.io/a/b@" + digest, "ghcr.io/a/b@" + digest},
		"localhost:5000/a":              {"localhost:5000/a:latest", "localhost:5000/a:latest"},
		"[::1]:5000/a":                  {"[::1]:5000/a:latest", "[::1]:5000/a:latest"},
		"oci:dir":                       {"oci:dir", "oci:dir"},
		"oci:/a/b:tag":                  {"oci:/a/b:tag", "oci:/a/b:tag"},
		"oci-archive:f.tar:x/y:z":       {"oci-archive:f.tar:x/y:z", "oci-archive:f.tar:x/y:z"},
		"docker-archive:f.tar:alpine:3": {"docker-archive:f.tar:alpine:3", "docker-archive:f.tar:alpine:3"},
	} {
		r, err := ParseReference(ref)
		if err != nil || r.String() != want[0] || r.Familiar() != want[1] {
			t.Errorf("%s: %q, %q, %v", ref, r, r.Familiar(), err)
		}
	}
	for _, ref := range []string{"", ":", "Alpine", "a b", "alpine:", "alpine@sha256:12", "alpine@md5:12", "oci:", "oci::tag", "docker://", "/abs/path", "./x", "http://x/y", "a\x00"} {
		if r, err := ParseReference(ref); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q was accepted as %q (%v)", ref, r, err)
		}
	}
}

func TestParsePlatform(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{"arm64": "linux/arm64", "linux/amd64": "linux/amd64", "linux/arm/v7": "linux/arm/v7"} {
		if p, err := ParsePlatform(s); err != nil || p.String() != want {
			t.Errorf("%s: %s, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "/", "a/", "a/b/c/d", strings.Repeat("x", 40)} {
		if _, err := ParsePlatform(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	img := h.push(t, "team/app:1",
		compressed(t, gzipped, archiveOf(t, file("a", "1"), file("b", "1"))),
		compressed(t, zstded, archiveOf(t, file(".wh.a", ""), file("c", "2"))),
		archiveOf(t, file("d", "3")),
	)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	c := testClient(t, Options{})
	ref := h.addr() + "/team/app:1"
	s, err := c.Open(t.Context(), ref, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if h.asked("/blobs/sha256:") > 1+2*3+2 { // pushes look for blobs as well
		t.Error("Open has fetched layers")
	}
	got := s.Image()
	if got.Ref != ref || got.Digest != digest.String() || len(got.Layers) != 3 || got.Platform != (Platform{}).orHost() || got.Created.Unix() != 1700000000 {
		t.Errorf("image %+v", got)
	}
	config, err := json.Marshal(got.Config)
	want := `{"entrypoint":["/entry"],"cmd":["sh","-c","id"],"env":["A=b"],"workdir":"/w","user":"1:2","labels":{"l":"m"},` +
		`"exposed_ports":["443/tcp","80/tcp"],"volumes":["/v"],"stop_signal":"SIGINT"}`
	if err != nil || string(config) != want {
		t.Errorf("configuration %s, %v", config, err)
	}
	var mu sync.Mutex
	ended, total := 0, int64(0)
	var out bytes.Buffer
	err = s.WriteTar(t.Context(), &out, func(u progress.Update) {
		mu.Lock()
		defer mu.Unlock()
		if u.Ended {
			ended++
		} else if u.Unit == "bytes" && u.Current == u.Total {
			total += u.Total
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if total != got.Layers[0].Size+got.Layers[1].Size+got.Layers[2].Size || ended != 3 {
		t.Errorf("progress: %d bytes, %d ends", total, ended)
	}
	if all := brief(listing(t, bytes.NewReader(out.Bytes()))); !maps.Equal(all, map[string]string{"b": "1", "c": "2", "d": "3"}) {
		t.Errorf("content %q", all)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	// The second time the layers are there, by digest or by tag; damage heals.
	h.lie(nil)
	if _, err := pulled(t, c, h.addr()+"/team/app@"+digest.String()); err != nil {
		t.Error(err)
	}
	if n := h.asked(got.Layers[0].Digest); n != 0 {
		t.Errorf("a layer was fetched again, %d times", n)
	}
	for _, damage := range []string{"", "junk", strings.Repeat("x", int(got.Layers[0].Size))} {
		if err := os.WriteFile(c.cache().file(blobs, got.Layers[0]), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := pulled(t, c, ref); err != nil || brief(all)["b"] != "1" {
			t.Errorf("damage %.8q: %v", damage, err)
		}
	}
}

func TestPullPlatforms(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var index v1.ImageIndex = empty.Index
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}, {OS: "linux", Architecture: "arm", Variant: "v7"}, {OS: "unknown", Architecture: "unknown"}} {
		img := imageOf(t, archiveOf(t, file("arch", p.String())))
		cf, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cf = cf.DeepCopy()
		cf.OS, cf.Architecture, cf.Variant = p.OS, p.Architecture, p.Variant
		if img, err = mutate.ConfigFile(img, cf); err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	ref, err := name.ParseReference(h.addr() + "/multi")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	c := testClient(t, Options{})
	for want, p := range map[string]Platform{"linux/amd64": {Architecture: "amd64"}, "linux/arm64/v8": {OS: "linux", Architecture: "arm64"}, "linux/arm/v7": {Architecture: "arm", Variant: "v7"}} {
		s, err := c.Open(t.Context(), ref.String(), p)
		if err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if got := s.Image().Platform.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	_, err = c.Open(t.Context(), ref.String(), Platform{Architecture: "s390x"})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(fault.HintOf(err), "linux/amd64, linux/arm/v7, linux/arm64/v8") || strings.Contains(fault.HintOf(err), "unknown") {
		t.Errorf("got %v, hint %q", err, fault.HintOf(err))
	}
	// An image without an index says itself what it is for.
	h.push(t, "single", archiveOf(t, file("a", "1")))
	if _, err := c.Open(t.Context(), h.addr()+"/single", Platform{Architecture: "s390x"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestPullResumes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	data := archiveOf(t, file("a", random(5<<20)))
	img := h.push(t, "app", data)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	l := Layer{Digest: d.String(), Size: int64(len(data))}
	var mu sync.Mutex
	var sent int64
	breaks := 0
	h.lie(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, l.Digest) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		from := 0
		if spec, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
			for _, c := range strings.TrimSuffix(spec, "-") {
				from = from*10 + int(c-'0')
			}
			w.Header().Set("Content-Range", "bytes "+strings.TrimSuffix(spec, "-")+"-"+"x/y")
			w.WriteHeader(http.StatusPartialContent)
		}
		rest := data[from:]
		if breaks++; breaks < 6 && len(rest) > 1<<20 { // more often than a client tries that gets no further
			rest = rest[:1<<20]
		}
		n, _ := w.Write(rest)
		sent += int64(n)
		return true
	})
	c := testClient(t, Options{})
	// A process that was killed has left the first 100,000 bytes, and another layer's rest was never completed.
	if err := os.MkdirAll(filepath.Join(c.opts.CacheDir, partial), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.cache().file(partial, l), data[:100000], 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := pulled(t, c, h.addr()+"/app")
	if err != nil || all["a"].content != random(5<<20) {
		t.Fatalf("%d entries, %v", len(all), err)
	}
	if sent != int64(len(data))-100000 || breaks < 5 {
		t.Errorf("%d bytes were sent of %d, in %d answers", sent, len(data), breaks)
	}
	// What was left may be wrong, or longer than the layer.
	for _, rest := range []string{"wrong", strings.Repeat("x", len(data)+1), strings.Repeat("x", len(data))} {
		if err := os.Remove(c.cache().file(blobs, l)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.cache().file(partial, l), []byte(rest), 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := pulled(t, c, h.addr()+"/app"); err != nil || len(all) != 2 {
			t.Errorf("rest of %d bytes: %v", len(rest), err)
		}
	}
}

func TestPullTogether(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	img := h.push(t, "app", archiveOf(t, file("a", random(1<<20))))
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	h.lie(nil)
	dir := t.TempDir()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if all, err := pulled(t, testClient(t, Options{CacheDir: dir}), h.addr()+"/app"); err != nil || len(all) != 2 {
				t.Errorf("%d entries, %v", len(all), err)
			}
		})
		group.Go(func() { // safe at any moment
			if _, err := testClient(t, Options{CacheDir: dir}).Prune(t.Context(), false); err != nil {
				t.Errorf("prune: %v", err)
			}
		})
	}
	group.Wait()
	if n := h.asked(d.String()); n < 1 || n > 8 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.push(t, "app", archiveOf(t, file("a", random(1<<20))))
	c := testClient(t, Options{})
	if n, err := c.Prune(t.Context(), false); n != 0 || err != nil {
		t.Errorf("an empty cache: %d, %v", n, err)
	}
	s, err := c.Open(t.Context(), h.addr()+"/app", Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteTar(t.Context(), io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	busy := Layer{Digest: "sha256:" + strings.Repeat("b", 64)}
	f, err := lock(t.Context(), c.cache().file(partial, busy))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // a test
	dry, err := c.Prune(t.Context(), true)
	if err != nil || dry < 1<<20 {
		t.Errorf("dry: %d, %v", dry, err)
	}
	if n, err := c.Prune(t.Context(), false); n != dry || err != nil {
		t.Errorf("%d instead of %d, %v", n, dry, err)
	}
	if !isAt(f, f.Name()) {
		t.Error("a layer was pruned while it was fetched")
	}
	// The source that is open reads on.
	var out bytes.Buffer
	if err := s.WriteTar(t.Context(), &out, nil); err != nil {
		t.Errorf("after prune: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestMirrors(t *testing.T) {
	t.Parallel()
	origin, mirror := newHost(t), newHost(t)
	data := archiveOf(t, file("a", random(100000)))
	origin.push(t, "app:1", data)
	img := mirror.push(t, "hub/app:1", data)
	origin.push(t, "only:1", data)
	origin.lie(nil)
	c := testClient(t, Options{Mirrors: map[string][]string{origin.addr(): {"127.0.0.1:1", mirror.URL + "/hub/"}}})
	if all, err := pulled(t, c, origin.addr()+"/app:1"); err != nil || len(all) != 2 {
		t.Errorf("%d entries, %v", len(all), err)
	}
	if n := origin.asked("/app/"); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
	if _, err := pulled(t, c, origin.addr()+"/only:1"); err != nil {
		t.Errorf("not on the mirror: %v", err)
	}
	// A mirror whose layers are damaged doesn't hold up anybody.
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	mirror.lie(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, d.String()) {
			w.Write(bytes.Repeat([]byte("x"), len(data))) //nolint:errcheck // a test
			return true
		}
		return false
	})
	if _, err := c.Prune(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if all, err := pulled(t, c, origin.addr()+"/app:1"); err != nil || len(all) != 2 {
		t.Errorf("damaged mirror: %v", err)
	}
	bad := testClient(t, Options{Mirrors: map[string][]string{"docker.io": {"http://mirror.example"}}})
	if _, err := bad.Open(t.Context(), "alpine", Platform{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "no TLS") {
		t.Errorf("a mirror without TLS: %v", err)
	}
}
