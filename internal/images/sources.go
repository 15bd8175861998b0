package images

import (
	"context"
	"io"

	"banger/internal/oci"
	"banger/internal/progress"
)

// Sources finds images in registries and archives.
type Sources interface {
	// Open finds the image that a reference names; none of its layers is fetched yet.
	Open(ctx context.Context, ref string, p oci.Platform) (Source, error)
	// OpenArchive looks at a file or directory. tag chooses one of several images in it; empty: there is one.
	OpenArchive(ctx context.Context, path, tag string) (Source, error)
	// Prune frees what has been fetched and is not being used, and returns how many bytes that are.
	Prune(ctx context.Context, dryRun bool) (int64, error)
}

// Source is an image that was found.
type Source interface {
	Image() oci.Image
	// WriteTar writes the whole root filesystem as a tar stream.
	WriteTar(ctx context.Context, w io.Writer, sink progress.Sink) error
	Close() error
}

// OCI makes the sources of a client of package oci.
func OCI(c *oci.Client) Sources { return ociSources{c} }

type ociSources struct{ client *oci.Client }

func (s ociSources) Open(ctx context.Context, ref string, p oci.Platform) (Source, error) {
	src, err := s.client.Open(ctx, ref, p)
	if err != nil {
		return nil, err // not a nil *oci.Source in an interface
	}
	return src, nil
}

func (s ociSources) OpenArchive(ctx context.Context, path, tag string) (Source, error) {
	src, err := s.client.OpenArchive(ctx, path, tag)
	if err != nil {
		return nil, err
	}
	return src, nil
}

func (s ociSources) Prune(ctx context.Context, dryRun bool) (int64, error) {
	return s.client.Prune(ctx, dryRun)
}
