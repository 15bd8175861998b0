package images

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"banger/internal/oci"
	"banger/internal/overlay"
	"banger/internal/progress"
)

// Export writes an image as an archive that container engines load, and returns the digest of its manifest. The same image
// gives the same bytes. The format is "oci", also if it is empty, or "docker". The archive's one layer lies in a file without a name in the cache meanwhile.
func (s *Store) Export(ctx context.Context, name, format string, w io.Writer, sink progress.Sink) (digest string, err error) {
	err = s.packed(ctx, name, oci.Format(cmp.Or(format, string(oci.FormatOCI))), sink, func(p *oci.Packed) error {
		end := sink.Stage("write archive")
		err := p.WriteArchive(ctx, w)
		end(err)
		if err == nil {
			digest, err = p.Digest()
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("export image %s: %w", name, err)
	}
	return digest, nil
}

// Push writes an image to a registry, and returns the digest of its manifest.
func (s *Store) Push(ctx context.Context, name, ref string, sink progress.Sink) (digest string, err error) {
	client := oci.New(oci.Options{Log: s.log})
	err = s.packed(ctx, name, oci.FormatOCI, sink, func(p *oci.Packed) error {
		if err := client.Push(ctx, p, ref, sink); err != nil {
			return err
		}
		digest, err = p.Digest()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("push image %s: %w", name, err)
	}
	return digest, nil
}

// packed calls use with an image that has been made into a layer.
func (s *Store) packed(ctx context.Context, name string, format oci.Format, sink progress.Sink, use func(*oci.Packed) error) error {
	img, err := s.Get(name)
	if err != nil {
		return err
	}
	var platform oci.Platform
	if img.Platform != "" {
		if platform, err = oci.ParsePlatform(img.Platform); err != nil {
			return err
		}
	}
	fsys, f, err := openFilesystem(img.RootPath)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	stage := "pack " + name
	end := sink.Stage(stage)
	p, err := oci.Pack(ctx, filepath.Join(filepath.Dir(s.logs), "export"), format, oci.Content{
		Name: archiveName(img), Config: img.Config, Platform: platform, Created: img.Created,
		WriteRoot: func(ctx context.Context, w io.Writer) error {
			return overlay.WriteTar(ctx, &counter{w: w, stage: stage, sink: sink}, overlay.Root{Base: fsys}, overlay.Options{})
		},
	})
	end(err)
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // a file without a name
	return use(p)
}

// archiveName is what an image is called in an archive: one that is asked for by its digest has no other name.
func archiveName(img Image) string {
	if img.Name == "" {
		_, hex, _ := strings.Cut(img.Digest, ":")
		return "banger:" + hex[:min(12, len(hex))]
	}
	name, _, _ := strings.Cut(img.Name, "@") // only a tag can stand there
	return name
}

// counter reports how much has been written.
type counter struct {
	w     io.Writer
	stage string
	sink  progress.Sink
	total int64
	told  int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.total += int64(n); c.total-c.told >= 8<<20 {
		c.told = c.total
		c.sink.Send(progress.Update{Stage: c.stage, Current: c.total, Unit: "bytes"})
	}
	return n, err
}
