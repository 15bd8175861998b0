package images

import (
	"context"
	"fmt"
	"io"

	"banger/internal/depot"
	"banger/internal/fault"
	"banger/internal/oci"
	"banger/internal/progress"
)

// Pull makes an image of the catalogue or of a registry present. A tag of a registry is asked for again, and the name moved
// if the tag has; what VMs have of the old image stays as long as they need it. platform is such as "linux/arm64"; empty: this
// host's.
func (s *Store) Pull(ctx context.Context, ref, platform string, sink progress.Sink) (Image, error) {
	var p oci.Platform
	if platform != "" {
		var err error
		if p, err = oci.ParsePlatform(platform); err != nil {
			return Image{}, err
		}
	}
	if err := s.fetchCatalog(ctx); err != nil {
		return Image{}, err
	}
	m, err := s.mean(ref)
	if err != nil {
		return Image{}, err
	}
	name, isRef := m.key(), false
	if m.digest == "" && m.entry == nil {
		r, err := reference(name)
		isRef = err == nil && r == name
	}
	if !isRef {
		if p != (oci.Platform{}) {
			return Image{}, fault.New(fault.Invalid, "a platform can only be chosen for images of a registry")
		}
		return s.Ensure(ctx, ref, sink)
	}
	img, err := s.pull(ctx, name, p, true, sink)
	return img, s.maybeMisspelt(ref, err)
}

// pull makes an image of a registry present. name is a reference in its short form. refresh asks the registry even if the
// image is here.
func (s *Store) pull(ctx context.Context, name string, p oci.Platform, refresh bool, sink progress.Sink) (Image, error) {
	for {
		err := s.depot.Do(ctx, sink, depot.Job{
			Key:  fileOf(name),
			Have: func() (bool, error) { return !refresh && present(&s.shelf, name), nil },
			Make: func(ctx context.Context, work string, sink progress.Sink) error {
				end := sink.Stage("pull image " + name)
				err := s.fetch(ctx, work, name, p, sink)
				end(err)
				return err
			},
		})
		if err != nil {
			return Image{}, fmt.Errorf("pull image %s: %w", name, err)
		}
		img, err := s.byName(name)
		if err != nil || p == (oci.Platform{}) || samePlatform(img.Platform, p) {
			return img, err
		}
		// Somebody who was already at work wanted the name for another platform: it is our turn now.
		refresh = true
	}
}

// present reports whether an image is here and whole.
func present(s *shelf, name string) bool {
	_, err := s.byName(name)
	return err == nil
}

func samePlatform(have string, want oci.Platform) bool {
	p, err := oci.ParsePlatform(have)
	return err == nil && p.OS == want.OS && p.Architecture == want.Architecture && (want.Variant == "" || p.Variant == want.Variant)
}

// layerRoom is how much of the disk an image takes while it is made, for each byte of its layers as they are stored: the layer
// itself and what is in it, at the usual compression.
const layerRoom = 4

// fetch gets an image from a registry, unless what is there is here under this or another name.
func (s *Store) fetch(ctx context.Context, work, name string, p oci.Platform, sink progress.Sink) error {
	src, err := s.sources.Open(ctx, name, p)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // only read
	found := src.Image()
	about := nameFile{
		Source: found.Ref, Config: &found.Config, Manifest: found.Digest, Platform: found.Platform.String(),
	}
	if done, err := s.alias(ctx, name, about); done || err != nil {
		return err
	}
	var need int64
	for _, l := range found.Layers {
		need += l.Size
	}
	if err := checkSpace(work, need*layerRoom); err != nil {
		return err
	}
	return s.add(ctx, work, content{name: name, about: about, tar: func(ctx context.Context, w io.Writer) error {
		return src.WriteTar(ctx, w, sink)
	}})
}

// alias points a name at an image that is here and was made from the same manifest, if there is one.
func (s *shelf) alias(ctx context.Context, name string, about nameFile) (bool, error) {
	list, err := s.List()
	if err != nil || about.Manifest == "" {
		return false, err
	}
	for _, img := range list {
		if img.Manifest != about.Manifest || img.Platform != about.Platform || img.Registered {
			continue
		}
		if img.Name == name {
			return true, nil
		}
		about.Digest, about.Created = img.Digest, img.Created
		err := s.publish(ctx, name, "", blobFile{Size: img.Size}, about)
		if fault.Is(err, fault.NotFound) {
			continue // deleted meanwhile
		}
		return err == nil, err
	}
	return false, nil
}
