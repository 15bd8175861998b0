package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/fault"
)

// Bounds of what describes an image.
const (
	maxManifest  = 4 << 20 // bytes, as registries have it
	maxConfig    = 8 << 20 // bytes
	maxLayers    = 1024
	maxIndexes   = 4       // that lead from one to the next
	maxLayerSize = 1 << 40 // bytes
)

// shelf holds the small objects of an image by digest. What it returns need not have been checked.
type shelf interface {
	// manifest returns a manifest or index of at most maxManifest bytes.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// config returns an image configuration of at most maxConfig bytes.
	config(ctx context.Context, d v1.Descriptor) ([]byte, error)
}

// wish is what somebody wants to have of an index.
type wish struct {
	Platform
	strict bool // an image that says it is for another platform won't do
}

// document is what manifests and indexes have in common.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	Manifests     []json.RawMessage `json:"manifests"`
	Layers        []json.RawMessage `json:"layers"`
	Config        json.RawMessage   `json:"config"`
}

// assemble follows a manifest or index down to the image that is wished for.
func assemble(ctx context.Context, from shelf, top v1.Descriptor, want wish) (Image, []*layer, error) {
	next := top
	for range maxIndexes {
		raw, err := from.manifest(ctx, next)
		if err != nil {
			return Image{}, nil, err
		}
		if err := checkSmall(raw, next, maxManifest); err != nil {
			return Image{}, nil, fmt.Errorf("manifest %s: %w", next.Digest, err)
		}
		digest := digestOf(raw) // of what was found by a tag, too
		var doc document
		if err := json.Unmarshal(raw, &doc); err != nil {
			return Image{}, nil, fault.New(fault.Corrupt, "manifest %s is damaged: %w", digest, err)
		}
		switch {
		case doc.SchemaVersion == 1:
			return Image{}, nil, fault.New(fault.Unsupported, "the image has a manifest of Docker's schema 1, which nobody writes any more").
				WithHint("push it again with a current tool")
		case doc.Manifests != nil && doc.Layers == nil:
			if next, err = choose(raw, want); err != nil {
				return Image{}, nil, err
			}
		case doc.Config != nil && doc.Manifests == nil:
			return readImage(ctx, from, raw, digest, want)
		default:
			return Image{}, nil, fault.New(fault.Unsupported, "manifest %s is not that of an image (media type %.100q)", digest, doc.MediaType)
		}
	}
	return Image{}, nil, fault.New(fault.Corrupt, "image index %s leads to nothing but other indexes", top.Digest)
}

// choose picks the manifest for a platform.
func choose(raw []byte, want wish) (v1.Descriptor, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, fault.New(fault.Corrupt, "the image index is damaged: %w", err)
	}
	var others []string
	var fallback *v1.Descriptor
	for i, d := range index.Manifests {
		if d.Platform == nil { // an index of one image, or of another index
			if fallback == nil {
				fallback = &index.Manifests[i]
			}
			continue
		}
		p := Platform{OS: d.Platform.OS, Architecture: d.Platform.Architecture, Variant: d.Platform.Variant}
		if p.OS == "unknown" { // an attestation
			continue
		}
		if want.serves(p) {
			return d, nil
		}
		others = append(others, p.String())
	}
	if fallback != nil && len(others) == 0 {
		return *fallback, nil
	}
	err = fault.New(fault.NotFound, "there is no image for %s", want.Platform).WithHint("it is made for: %s", list(others))
	return v1.Descriptor{}, err
}

func list(words []string) string {
	slices.Sort(words)
	words = slices.Compact(words)
	if len(words) > 20 {
		words = append(words[:20:20], "...")
	}
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, ", ")
}

// serves reports whether an image for a platform will do.
func (w wish) serves(has Platform) bool {
	return has.OS == w.OS && has.Architecture == w.Architecture &&
		(w.Variant == "" || variant(has) == variant(w.Platform))
}

// variant of a platform, with what goes without saying said.
func variant(p Platform) string {
	if p.Variant == "" && p.Architecture == "arm64" {
		return "v8"
	}
	return p.Variant
}

func readImage(ctx context.Context, from shelf, raw []byte, digest string, want wish) (Image, []*layer, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return Image{}, nil, fault.New(fault.Corrupt, "manifest %s is damaged: %w", digest, err)
	}
	if len(m.Layers) > maxLayers {
		return Image{}, nil, fault.New(fault.Invalid, "the image has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	var layers []*layer
	for _, d := range m.Layers {
		if !isArchive(d.MediaType) {
			return Image{}, nil, fault.New(fault.Unsupported, "manifest %s is not that of a root filesystem: it has a layer of type %.100q", digest, d.MediaType)
		}
		if err := checkDescriptor(d, maxLayerSize); err != nil {
			return Image{}, nil, fmt.Errorf("manifest %s: %w", digest, err)
		}
		layers = append(layers, &layer{Layer: Layer{Digest: d.Digest.String(), Size: d.Size}})
	}
	if err := checkDescriptor(m.Config, maxConfig); err != nil {
		return Image{}, nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	config, err := from.config(ctx, m.Config)
	if err != nil {
		return Image{}, nil, err
	}
	if err := checkSmall(config, m.Config, maxConfig); err != nil {
		return Image{}, nil, fmt.Errorf("image configuration %s: %w", m.Config.Digest, err)
	}
	img, err := readConfig(config, layers, want)
	img.Digest = digest
	return img, layers, err
}

// readConfig translates an image configuration, and takes the digests of the unpacked layers from it.
func readConfig(raw []byte, layers []*layer, want wish) (Image, error) {
	cf, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return Image{}, fault.New(fault.Corrupt, "the image configuration is damaged: %w", err)
	}
	if len(cf.RootFS.DiffIDs) != len(layers) {
		return Image{}, fault.New(fault.Corrupt, "the image has %d layers, but its configuration names %d", len(layers), len(cf.RootFS.DiffIDs))
	}
	img := Image{
		Platform: Platform{OS: cf.OS, Architecture: cf.Architecture, Variant: cf.Variant},
		Created:  cf.Created.Time,
		Config: Config{
			Entrypoint: cf.Config.Entrypoint, Cmd: cf.Config.Cmd, Env: cf.Config.Env, WorkDir: cf.Config.WorkingDir,
			User: cf.Config.User, Labels: cf.Config.Labels, StopSignal: cf.Config.StopSignal,
			ExposedPorts: slices.Sorted(maps.Keys(cf.Config.ExposedPorts)), Volumes: slices.Sorted(maps.Keys(cf.Config.Volumes)),
		},
	}
	if cf.OS != "" && cf.Architecture != "" && !want.serves(img.Platform) && (want.strict || cf.OS != want.OS || cf.Architecture != want.Architecture) {
		return Image{}, fault.New(fault.NotFound, "the image is for %s, not for %s", img.Platform, want.Platform)
	}
	for i, l := range layers {
		id := cf.RootFS.DiffIDs[i].String()
		if !isDigest(id) {
			return Image{}, fault.New(fault.Unsupported, "the image configuration has the digest %.100q", id)
		}
		l.diffID = id
		img.Layers = append(img.Layers, l.Layer)
	}
	return img, nil
}

func isArchive(t types.MediaType) bool {
	switch t {
	case types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd, types.DockerLayer, types.DockerUncompressedLayer,
		types.DockerForeignLayer, types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer,
		"application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return true
	default:
		return false
	}
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func isDigest(s string) bool { return digestForm.MatchString(s) }

func checkDescriptor(d v1.Descriptor, limit int64) error {
	switch {
	case !isDigest(d.Digest.String()):
		return fault.New(fault.Unsupported, "the digest %.100q is none of SHA-256", d.Digest.String())
	case d.Size < 0 || d.Size > limit:
		return fault.New(fault.Corrupt, "%s is said to have %d bytes", d.Digest, d.Size)
	}
	return nil
}

// checkSmall compares an object with its descriptor. A descriptor without size or digest promises nothing.
func checkSmall(raw []byte, d v1.Descriptor, limit int64) error {
	if int64(len(raw)) > limit || d.Size > limit {
		return fault.New(fault.Corrupt, "it has more than %d bytes", limit)
	}
	if d.Digest.Hex != "" && d.Digest.String() != digestOf(raw) {
		return fault.New(fault.Corrupt, "its content has the digest %s", digestOf(raw))
	}
	return nil
}

func digestOf(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}
