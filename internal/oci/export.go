package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"banger/internal/fault"
)

// Format is the form of an archive of an image.
type Format string

// The formats.
const (
	FormatOCI    Format = "oci"    // an OCI layout in a tar archive, with what older docker versions need to load it
	FormatDocker Format = "docker" // as docker save writes it
)

// Content is an image that is to be written.
type Content struct {
	Name     string // for archives: what it is called where it is loaded; "debian-bookworm", "alpine:3.20"
	Config   Config
	Platform Platform // zero: linux on the architecture of this host
	Created  time.Time
	// WriteRoot writes the root filesystem as a tar archive.
	WriteRoot func(ctx context.Context, w io.Writer) error
}

// Packed is an image of one layer, ready to be written anywhere. The same content gives the same bytes and digests.
type Packed struct {
	image v1.Image
	layer *packedLayer
	name  string
}

// Pack compresses an image's root into a file in dir that has no name: it is gone when the packed image is closed, or this
// process ends. Memory does not grow with the image.
func Pack(ctx context.Context, dir string, format Format, c Content) (*Packed, error) {
	layerType, manifestType, configType := types.OCILayer, types.OCIManifestSchema1, types.OCIConfigJSON
	switch format {
	case FormatOCI:
	case FormatDocker:
		layerType, manifestType, configType = types.DockerLayer, types.DockerManifestSchema2, types.DockerConfigJSON
	default:
		return nil, fault.New(fault.Invalid, "there is no image format %q", format).WithHint("use %s or %s", FormatOCI, FormatDocker)
	}
	layer, err := packLayer(ctx, dir, layerType, c.WriteRoot)
	if err != nil {
		return nil, err
	}
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifestType), configType), mutate.Addendum{
		Layer: layer, MediaType: layerType,
		History: v1.History{Created: v1.Time{Time: c.Created}, CreatedBy: "banger"},
	})
	if err == nil {
		img, err = configure(img, c)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("describe image: %w", err), layer.file.Close())
	}
	return &Packed{image: img, layer: layer, name: c.Name}, nil
}

// configure gives an image its configuration.
func configure(img v1.Image, c Content) (v1.Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	p := c.Platform.orHost()
	config.OS, config.Architecture, config.Variant, config.Created = p.OS, p.Architecture, p.Variant, v1.Time{Time: c.Created}
	set := func(list []string) map[string]struct{} {
		if len(list) == 0 {
			return nil
		}
		m := map[string]struct{}{}
		for _, item := range list {
			m[item] = struct{}{}
		}
		return m
	}
	config.Config = v1.Config{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, WorkingDir: c.Config.WorkDir, User: c.Config.User,
		Labels: c.Config.Labels, StopSignal: c.Config.StopSignal,
		ExposedPorts: set(c.Config.ExposedPorts), Volumes: set(c.Config.Volumes),
	}
	return mutate.ConfigFile(img, config)
}

// Digest returns the digest of the image's manifest: "sha256:...".
func (p *Packed) Digest() (string, error) {
	d, err := p.image.Digest()
	return d.String(), err
}

// Close frees the layer.
func (p *Packed) Close() error { return p.layer.file.Close() }

// WriteArchive writes the image as an archive that docker, podman and skopeo load.
func (p *Packed) WriteArchive(ctx context.Context, w io.Writer) error {
	w = contextWriter{ctx, w}
	tag, err := name.NewTag(p.name, name.WithDefaultTag("latest"))
	if err != nil {
		return fault.New(fault.Invalid, "the image's name %q can't stand in an archive: %w", p.name, err)
	}
	if p.layer.mediaType == types.DockerLayer {
		return tarball.Write(tag, p.image, w)
	}
	return p.writeLayout(w, tag)
}

// writeLayout writes an OCI image layout (image-layout.md of the OCI image specification), and manifest.json as docker save
// does: docker reads nothing else before version 25.
func (p *Packed) writeLayout(w io.Writer, tag name.Tag) error {
	manifest, err := p.image.RawManifest()
	if err != nil {
		return err
	}
	config, err := p.image.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := p.image.Digest()
	if err != nil {
		return err
	}
	configName, err := p.image.ConfigName()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Size: int64(len(manifest)), Digest: digest,
			Annotations: map[string]string{
				"org.opencontainers.image.ref.name": tag.TagStr(), "io.containerd.image.name": tag.Name(),
			},
		}},
	})
	if err != nil {
		return err
	}
	short := strings.TrimPrefix(strings.TrimPrefix(tag.Name(), name.DefaultRegistry+"/"), "library/")
	docker, err := json.Marshal(tarball.Manifest{{
		Config: blobPath(configName.String()), RepoTags: []string{short}, Layers: []string{blobPath(p.layer.digest.String())},
	}})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs", "blobs/sha256"} {
		if err := tw.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	files := []struct {
		name    string
		content io.Reader
		size    int64
	}{
		{"oci-layout", strings.NewReader(`{"imageLayoutVersion":"1.0.0"}`), 30},
		{"index.json", bytes.NewReader(index), int64(len(index))},
		{"manifest.json", bytes.NewReader(docker), int64(len(docker))},
		{blobPath(digest.String()), bytes.NewReader(manifest), int64(len(manifest))},
		{blobPath(configName.String()), bytes.NewReader(config), int64(len(config))},
		{blobPath(p.layer.digest.String()), io.NewSectionReader(p.layer.file, 0, p.layer.size), p.layer.size},
	}
	for _, f := range files {
		h := &tar.Header{Name: path.Clean(f.name), Typeflag: tar.TypeReg, Mode: 0o644, Size: f.size, ModTime: time.Unix(0, 0)}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, f.content); err != nil {
			return err
		}
	}
	return tw.Close()
}

// packedLayer is a layer in a file without a name.
type packedLayer struct {
	file           *os.File
	size           int64 // bytes, compressed
	digest, diffID v1.Hash
	mediaType      types.MediaType
}

func packLayer(
	ctx context.Context, dir string, mediaType types.MediaType, write func(context.Context, io.Writer) error,
) (_ *packedLayer, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pack image: %w", err)
	}
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, fmt.Errorf("pack image: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, fmt.Errorf("pack image: %w", err)
	}
	stored, plain := sha256.New(), sha256.New()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, stored), gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := write(ctx, io.MultiWriter(zw, plain)); err != nil {
		return nil, fmt.Errorf("pack image: %w", full(err))
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("pack image: %w", full(err))
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	l := &packedLayer{file: f, size: info.Size(), mediaType: mediaType}
	for to, h := range map[*v1.Hash]hash.Hash{&l.digest: stored, &l.diffID: plain} {
		if *to, err = v1.NewHash(sum(h)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// The methods below are those of [v1.Layer].

func (l *packedLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *packedLayer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *packedLayer) Size() (int64, error)                 { return l.size, nil }
func (l *packedLayer) MediaType() (types.MediaType, error)  { return l.mediaType, nil }
func (l *packedLayer) Compressed() (io.ReadCloser, error)   { return io.NopCloser(l.section()), nil }
func (l *packedLayer) Uncompressed() (io.ReadCloser, error) { return gzip.NewReader(l.section()) }
func (l *packedLayer) section() *io.SectionReader           { return io.NewSectionReader(l.file, 0, l.size) }

// contextWriter makes a writer fail when the context has ended.
type contextWriter struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.w.Write(p)
}
