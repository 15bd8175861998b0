package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/fault"
)

const (
	maxMembers  = 1 << 16  // files in an archive of images
	maxIndex    = 16 << 20 // bytes in the list of its images
	layoutFile  = "oci-layout"
	indexFile   = "index.json"
	dockerFile  = "manifest.json"
	refName     = "org.opencontainers.image.ref.name" // OCI image specification, annotations.md
	refFullName = "io.containerd.image.name"
)

// members are the files of an image layout or archive, by name.
type members interface {
	// open returns a file, or fs.ErrNotExist. It stays open until the source is closed.
	open(name string) (*io.SectionReader, error)
}

func (c *Client) openArchive(ctx context.Context, r Reference, want wish) (*Source, error) {
	file, err := os.Open(r.Path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "there is no file %s", r.Path)
		}
		return nil, fmt.Errorf("open image: %w", err)
	}
	s, err := c.openFile(ctx, file, r, want)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", r.Path, err), file.Close())
	}
	s.image.Ref = r.String()
	return s, nil
}

func (c *Client) openFile(ctx context.Context, f *os.File, r Reference, want wish) (*Source, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir() && r.Transport != TransportLayout && r.Transport != transportAny:
		return nil, fault.New(fault.Invalid, "it is a directory, not an archive")
	case info.IsDir():
		root, err := os.OpenRoot(f.Name())
		if err != nil {
			return nil, err
		}
		dir := &directory{root: root}
		s, err := c.openMembers(ctx, dir, r, want)
		if err != nil {
			return nil, errors.Join(err, dir.close())
		}
		s.close = func() error { return errors.Join(dir.close(), f.Close()) }
		return s, nil
	case !info.Mode().IsRegular():
		return nil, fault.New(fault.Invalid, "it is neither a file nor a directory")
	case r.Transport == TransportLayout:
		return nil, fault.New(fault.Invalid, "it is not a directory")
	}
	return c.openTar(ctx, f, info.Size(), r, want)
}

// openTar looks what an archive is. A compressed one of images is spooled: its files are wanted in an order of their own.
func (c *Client) openTar(ctx context.Context, f *os.File, size int64, r Reference, want wish) (*Source, error) {
	whole := &layer{data: io.NewSectionReader(f, 0, size)}
	how, err := sniffAt(f)
	if err != nil {
		return nil, err
	}
	images, err := c.holdsImages(ctx, whole)
	if err != nil {
		return nil, err
	}
	if !images && r.Transport != transportAny {
		return nil, fault.New(fault.Invalid, "it is not an archive of images")
	}
	archive := f
	// The xz decompressor is too slow to be used twice.
	if how == xzipped || images && how != plain {
		if archive, err = c.spool(ctx, whole); err != nil {
			return nil, err
		}
		whole = &layer{data: io.NewSectionReader(archive, 0, 1<<62)}
		if info, err := archive.Stat(); err == nil {
			whole.data = io.NewSectionReader(archive, 0, info.Size())
		}
	}
	closeBoth := func() error {
		if archive == f {
			return f.Close()
		}
		return errors.Join(f.Close(), archive.Close())
	}
	if !images {
		s := c.source(Image{Platform: want.Platform}, []*layer{whole})
		s.literal, s.close = true, closeBoth
		return s, nil
	}
	m, err := readMembers(ctx, whole.data)
	if err == nil {
		var s *Source
		if s, err = c.openMembers(ctx, m, r, want); err == nil {
			s.close = closeBoth
			return s, nil
		}
	}
	if archive != f {
		err = errors.Join(err, archive.Close())
	}
	return nil, err
}

// holdsImages tells an archive of images from one of a root filesystem, which holds other things on its top level.
func (c *Client) holdsImages(ctx context.Context, whole *layer) (bool, error) {
	in, err := whole.open(ctx, c.packed(), true)
	if err != nil {
		return false, err
	}
	defer in.stop()
	tr := tar.NewReader(in)
	for found, n := false, 0; n < maxMembers; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if errors.Is(err, tar.ErrHeader) && n == 0 {
			return false, fault.New(fault.Invalid, "it is not a tar archive, nor one that is compressed with gzip, xz or zstd")
		}
		if err != nil {
			return false, damaged(err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch {
		case name == dockerFile, name == indexFile:
			found = true
		case !isMember(name, h.Typeflag):
			return false, nil
		}
	}
	return false, fault.New(fault.Invalid, "it has too many files for an archive of images")
}

// isMember reports whether an archive of images may hold a file besides its index.
func isMember(name string, kind byte) bool {
	top, _, _ := strings.Cut(name, "/")
	stem, _, _ := strings.Cut(top, ".")
	switch {
	case kind == tar.TypeXGlobalHeader, name == "", name == layoutFile, name == "repositories", top == blobs:
		return true
	}
	return isDigest("sha256:" + strings.TrimPrefix(stem, "sha256:"))
}

// spool decompresses an archive into a temporary file.
func (c *Client) spool(ctx context.Context, whole *layer) (*os.File, error) {
	in, err := whole.open(ctx, c.packed(), false)
	if err != nil {
		return nil, err
	}
	defer in.stop()
	f, err := c.cache().temp()
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, in, make([]byte, chunkSize)); err != nil {
		return nil, errors.Join(full(damaged(err)), f.Close())
	}
	return f, nil
}

// directory is an image layout.
type directory struct {
	root  *os.Root
	files []*os.File
}

func (d *directory) open(name string) (*io.SectionReader, error) {
	f, err := d.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	d.files = append(d.files, f)
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s is not a file", name)
	}
	return io.NewSectionReader(f, 0, info.Size()), nil
}

func (d *directory) close() error {
	errs := []error{d.root.Close()}
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// tarMembers are the files of an archive without compression.
type tarMembers struct {
	data  *io.SectionReader
	at    map[string][2]int64 // position and size
	links map[string]string   // old versions of docker save link layers that are alike
}

func readMembers(ctx context.Context, data *io.SectionReader) (*tarMembers, error) {
	m := &tarMembers{data: data, at: map[string][2]int64{}, links: map[string]string{}}
	in := &seeker{ctx: ctx, r: io.NewSectionReader(data, 0, data.Size())}
	tr := tar.NewReader(in)
	for range maxMembers {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return nil, damaged(err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := in.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if h.Size > data.Size()-at {
				return nil, fault.New(fault.Corrupt, "the archive is cut off in %.200q", name)
			}
			m.at[name] = [2]int64{at, h.Size}
		case tar.TypeSymlink:
			m.links[name] = strings.TrimPrefix(path.Clean("/"+path.Join(path.Dir(name), h.Linkname)), "/")
		case tar.TypeLink:
			m.links[name] = strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		}
	}
	return nil, fault.New(fault.Invalid, "it has too many files for an archive of images")
}

func (m *tarMembers) open(name string) (*io.SectionReader, error) {
	name = path.Clean(name)
	for range 8 {
		if at, ok := m.at[name]; ok {
			return io.NewSectionReader(m.data, at[0], at[1]), nil
		}
		next, ok := m.links[name]
		if !ok {
			break
		}
		name = next
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// openMembers opens one image of a layout or archive.
func (c *Client) openMembers(ctx context.Context, m members, r Reference, want wish) (*Source, error) {
	_, noLayout := m.open(layoutFile)
	if r.Transport == TransportDockerArchive || r.Transport == transportAny && noLayout != nil {
		return c.openDocker(m, r, want)
	}
	raw, err := readMember(m, indexFile, maxIndex)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is not an OCI image layout: %w", err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fault.New(fault.Corrupt, "%s is damaged: %w", indexFile, err)
	}
	top, err := pick(index.Manifests, r.Tag)
	if err != nil {
		return nil, err
	}
	img, layers, err := assemble(ctx, layoutShelf{m}, top, want)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if l.data, err = m.open(blobPath(l.Digest)); err != nil {
			return nil, fault.New(fault.Corrupt, "layer %s is missing: %w", l.Digest, err)
		}
		if l.data.Size() != l.Size {
			return nil, fault.New(fault.Corrupt, "layer %s has %d bytes, not %d", l.Digest, l.data.Size(), l.Size)
		}
	}
	return c.source(img, layers), nil
}

// pick chooses the entry of a layout's index that has the tag.
func pick(all []v1.Descriptor, tag string) (v1.Descriptor, error) {
	var tags []string
	var found []v1.Descriptor
	for _, d := range all {
		name, full := d.Annotations[refName], d.Annotations[refFullName]
		tags = append(tags, name)
		if tag == "" || name == tag || full != "" && sameImage(full, tag) || sameImage(name, tag) {
			found = append(found, d)
		}
	}
	distinct := map[v1.Hash]bool{}
	for _, d := range found {
		distinct[d.Digest] = true
	}
	if len(distinct) == 1 {
		return found[0], nil
	}
	return v1.Descriptor{}, ambiguous(tag, len(distinct), tags)
}

func ambiguous(tag string, found int, names []string) error {
	if found == 0 && tag != "" {
		return fault.New(fault.NotFound, "it has no image %q", tag).WithHint("it has: %s", list(names))
	}
	if found == 0 {
		return fault.New(fault.NotFound, "it has no image")
	}
	return fault.New(fault.Invalid, "it has %d images", found).WithHint("choose one of: %s", list(names))
}

// sameImage reports whether two references mean one image.
func sameImage(a, b string) bool {
	ra, err := ParseReference(a)
	if err != nil {
		return false
	}
	rb, err := ParseReference(b)
	return err == nil && ra == rb
}

func blobPath(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }

func readMember(m members, name string, limit int64) ([]byte, error) {
	r, err := m.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, fault.New(fault.Corrupt, "%.100q has more than %d bytes", name, limit)
	}
	return io.ReadAll(r)
}

// layoutShelf is the shelf of an OCI layout.
type layoutShelf struct{ m members }

func (s layoutShelf) manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return s.blob(d, maxManifest)
}

func (s layoutShelf) config(_ context.Context, d v1.Descriptor) ([]byte, error) {
	return s.blob(d, maxConfig)
}

func (s layoutShelf) blob(d v1.Descriptor, limit int64) ([]byte, error) {
	if !isDigest(d.Digest.String()) {
		return nil, fault.New(fault.Unsupported, "the digest %.100q is none of SHA-256", d.Digest.String())
	}
	raw, err := readMember(s.m, blobPath(d.Digest.String()), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Corrupt, "blob %s is missing", d.Digest)
	}
	return raw, err
}

// openDocker opens one image of an archive that "docker save" has written. The digest of such an image is that of its
// configuration, as in "docker images": there is no manifest.
func (c *Client) openDocker(m members, r Reference, want wish) (*Source, error) {
	raw, err := readMember(m, dockerFile, maxIndex)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is neither an OCI image layout nor an archive of docker save: %w", err)
	}
	var all []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fault.New(fault.Corrupt, "%s is damaged: %w", dockerFile, err)
	}
	chosen, found := -1, 0
	var names []string
	for i, entry := range all {
		names = append(names, entry.RepoTags...)
		match := r.Tag == ""
		for _, t := range entry.RepoTags {
			match = match || t == r.Tag || sameImage(t, r.Tag)
		}
		if match {
			chosen = i
			found++
		}
	}
	if found != 1 {
		return nil, ambiguous(r.Tag, found, names)
	}
	entry := all[chosen]
	if len(entry.Layers) > maxLayers {
		return nil, fault.New(fault.Invalid, "the image has %d layers, more than %d", len(entry.Layers), maxLayers)
	}
	config, err := readMember(m, entry.Config, maxConfig)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "the image configuration can't be read: %w", err)
	}
	var layers []*layer
	for _, name := range entry.Layers {
		data, err := m.open(name)
		if err != nil {
			return nil, fault.New(fault.Corrupt, "a layer is missing: %w", err)
		}
		layers = append(layers, &layer{data: data, Layer: Layer{Size: data.Size()}})
	}
	img, err := readConfig(config, layers, want)
	if err != nil {
		return nil, err
	}
	// These layers go by the digests that they have unpacked: it is what the archive tells of them.
	for i, l := range layers {
		img.Layers[i].Digest = l.diffID
	}
	img.Digest = digestOf(config)
	return c.source(img, layers), nil
}

// source puts an opened image together.
func (c *Client) source(img Image, layers []*layer) *Source {
	return &Source{image: img, layers: layers, limits: limits{bytes: c.opts.MaxSize, entries: c.opts.MaxEntries, memory: maxMemory}}
}

// packed bounds a whole archive in bytes, unpacked.
func (c *Client) packed() int64 { return c.opts.MaxSize + int64(c.opts.MaxEntries)*2048 }

func closeAll(layers []*layer) error {
	var errs []error
	for _, l := range layers {
		if l.close != nil {
			errs = append(errs, l.close())
			l.close, l.data = nil, nil
		}
	}
	return errors.Join(errs...)
}
