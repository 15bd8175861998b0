package oci

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"banger/internal/fault"
)

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// layoutOf writes images as an OCI layout, by tag.
func layoutOf(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for tag, img := range images {
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{refName: tag})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tarOfDir(t *testing.T, root string) []byte {
	t.Helper()
	var items []item
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			items = append(items, dir(rel+"/"))
			return nil
		}
		data, err := os.ReadFile(path)
		items = append(items, file(rel, string(data)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return archiveOf(t, items...)
}

func dockerArchive(t *testing.T, images map[string]v1.Image) []byte {
	t.Helper()
	tags := map[name.Tag]v1.Image{}
	for ref, img := range images {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		tags[tag] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiWrite(tags, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(t *testing.T, s *Source) map[string]string {
	t.Helper()
	var out bytes.Buffer
	if err := s.WriteTar(t.Context(), &out, nil); err != nil {
		t.Fatal(err)
	}
	return brief(listing(t, &out))
}

func TestOpenArchive(t *testing.T) {
	t.Parallel()
	img := imageOf(t, compressed(t, gzipped, archiveOf(t, file("a", "1"), file("b", "1"))), compressed(t, gzipped, archiveOf(t, file(".wh.a", ""))))
	rootfs := archiveOf(t, file("etc/a", "1"), file(".wh.b", "literally"), file("etc/a", "2"))
	dir := layoutOf(t, map[string]v1.Image{"tag": img})
	ociTar, docker := tarOfDir(t, dir), dockerArchive(t, map[string]v1.Image{"team/app:1": img})
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	image, plainRoot := map[string]string{"b": "1"}, map[string]string{"etc": "dir 0755", "etc/a": "2", ".wh.b": "literally"}
	c := testClient(t, Options{})
	for name, tt := range map[string]struct {
		data   []byte
		digest string
		want   map[string]string
	}{"oci": {ociTar, digest.String(), image}, "docker": {docker, id.String(), image}, "root": {rootfs, "", plainRoot}} {
		for _, how := range []compression{plain, gzipped, xzipped, zstded} {
			s, err := c.OpenArchive(t.Context(), write(t, "x.tar", compressed(t, how, tt.data)), "")
			if err != nil {
				t.Errorf("%s, %s compression: %v", name, how, err)
				continue
			}
			if got := read(t, s); !maps.Equal(got, tt.want) || s.Image().Digest != tt.digest {
				t.Errorf("%s, %s compression: %q, digest %s", name, how, got, s.Image().Digest)
			}
			if cmd := s.Image().Config.Cmd; (len(cmd) == 3) != (tt.digest != "") {
				t.Errorf("%s: command %q", name, cmd)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for ref, want := range map[string]string{
		"oci:" + dir: digest.String(), "oci:" + dir + ":tag": digest.String(), "oci-archive:" + write(t, "o.tar", ociTar): digest.String(),
		"docker-archive:" + write(t, "d.tar", docker) + ":team/app:1": id.String(), "docker-archive:" + write(t, "e.tar", docker): id.String(),
	} {
		s, err := c.Open(t.Context(), ref, Platform{})
		if err != nil || s.Image().Digest != want || s.Image().Ref != ref {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if got := read(t, s); !maps.Equal(got, image) {
			t.Errorf("%s: %q", ref, got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(c.opts.CacheDir, spool, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOpenArchiveChooses(t *testing.T) {
	t.Parallel()
	one, two := imageOf(t, archiveOf(t, file("a", "1"))), imageOf(t, archiveOf(t, file("a", "2")))
	dir := layoutOf(t, map[string]v1.Image{"one": one, "two": two})
	docker := write(t, "d.tar", dockerArchive(t, map[string]v1.Image{"app:one": one, "app:two": two}))
	c := testClient(t, Options{})
	for path, tag := range map[string]string{dir: "two", docker: "app:two"} {
		s, err := c.OpenArchive(t.Context(), path, tag)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, s); got["a"] != "2" {
			t.Errorf("%q", got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.OpenArchive(t.Context(), path, ""); !fault.Is(err, fault.Invalid) || !strings.Contains(fault.HintOf(err), "one") {
			t.Errorf("no tag: %v, hint %q", err, fault.HintOf(err))
		}
		if _, err := c.OpenArchive(t.Context(), path, "three"); !fault.Is(err, fault.NotFound) {
			t.Errorf("another tag: %v", err)
		}
	}
}

func TestOpenArchiveRefuses(t *testing.T) {
	t.Parallel()
	img := imageOf(t, archiveOf(t, file("a", "1")))
	dir := layoutOf(t, map[string]v1.Image{"tag": img})
	damagedDir := layoutOf(t, map[string]v1.Image{"tag": img})
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	wrong := archiveOf(t, file("a", "2"))
	if err := os.WriteFile(filepath.Join(damagedDir, "blobs", "sha256", d.Hex), wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	// A blob that is a link out of the layout is not followed.
	linked := layoutOf(t, map[string]v1.Image{"tag": img})
	blob := filepath.Join(linked, "blobs", "sha256", d.Hex)
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "blobs", "sha256", d.Hex), blob); err != nil {
		t.Fatal(err)
	}
	oci := tarOfDir(t, dir)
	docker := dockerArchive(t, map[string]v1.Image{"app:1": img})
	c := testClient(t, Options{})
	for ref, kind := range map[string]fault.Kind{
		"oci:" + filepath.Join(dir, "missing"):             fault.NotFound,
		"oci:" + t.TempDir():                               fault.Invalid,
		"oci:" + damagedDir:                                fault.Corrupt,
		"oci:" + linked:                                    fault.Corrupt,
		"oci-archive:" + dir:                               fault.Invalid,
		"oci:" + write(t, "f", oci):                        fault.Invalid,
		"oci-archive:" + write(t, "cut", oci[:len(oci)/2]): fault.Corrupt,
		"oci-archive:" + write(t, "root", archiveOf(t, file("etc/x", ""))):                                  fault.Invalid,
		"oci-archive:" + write(t, "junk", []byte(random(5000))):                                             fault.Invalid,
		"docker-archive:" + write(t, "damaged", bytes.Replace(docker, []byte("ustar"), []byte("xstar"), 1)): fault.Invalid,
		"oci-archive:/dev/null": fault.Invalid,
	} {
		s, err := c.Open(t.Context(), ref, Platform{})
		if err == nil {
			err = s.WriteTar(t.Context(), io.Discard, nil)
			if cerr := s.Close(); cerr != nil {
				t.Error(cerr)
			}
		}
		if !fault.Is(err, kind) {
			t.Errorf("%s: got %v (%v), want %v", ref, err, fault.KindOf(err), kind)
		}
	}
	for name, data := range map[string][]byte{"text": []byte(strings.Repeat("text ", 1000)), "short": []byte("x"), "gzip of text": compressed(t, gzipped, []byte(random(5000)))} {
		if _, err := c.OpenArchive(t.Context(), write(t, "x", data), ""); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestXZDictionary(t *testing.T) {
	t.Parallel()
	data := compressed(t, xzipped, archiveOf(t, file("a", "1")))
	if got := dictionary(data); got != 8<<20 {
		t.Errorf("the dictionary has %d bytes", got)
	}
	data[16] = 40 // 4 GiB - 1
	if _, _, err := decompress(bytes.NewReader(data), xzipped, data); err == nil || !strings.Contains(err.Error(), "128 MiB") {
		t.Errorf("a huge dictionary: %v", err)
	}
}
