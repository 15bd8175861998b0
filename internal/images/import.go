package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/fault"
	"banger/internal/oci"
	"banger/internal/progress"
)

// ImportRequest says what to import: a file or directory of this user's by its absolute path, or a stream.
type ImportRequest struct {
	Name   string // empty: what the archive says
	Tag    string // which of several images of an archive; empty: there is one
	Path   string // an archive, or a directory with an OCI layout; not with Stream
	Stream io.Reader
	From   string // where a stream comes from, for people; may be empty
}

// Import makes an image from an archive of "docker save", an OCI archive or layout, or a tar of a root filesystem. The name
// may be that of an image that is here, which is then replaced; VMs that have the old one keep it. What is no archive fails
// with fault.Invalid, a damaged one with fault.Corrupt, and nothing is left.
func (s *Store) Import(ctx context.Context, req ImportRequest, sink progress.Sink) (Image, error) {
	name := req.Name
	if name != "" {
		var err error
		if name, err = s.NewName(name); err != nil {
			return Image{}, err
		}
	}
	if req.Stream == nil {
		if err := checkImportable(req.Path); err != nil {
			return Image{}, err
		}
	}
	err := s.depot.Scratch(ctx, func(work string) error {
		path, from := req.Path, filepath.Base(req.Path)
		if req.Stream != nil {
			path, from = filepath.Join(work, "archive"), req.From
			if err := spool(ctx, req.Stream, path, sink); err != nil {
				return err
			}
		}
		var err error
		name, err = s.importArchive(ctx, work, path, name, req.Tag, from, sink)
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	return s.byName(name)
}

// checkImportable refuses what is neither a file nor a directory before anything reads from it.
func checkImportable(path string) error {
	if !filepath.IsAbs(path) {
		return fault.New(fault.Invalid, "the path %.200q is not absolute", path)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no file %s", path)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "read %s: %w", path, err)
	case err != nil:
		return err
	case !info.Mode().IsRegular() && !info.IsDir():
		return fault.New(fault.Invalid, "%s is neither a file nor a directory", path).WithHint("import an archive: banger image import FILE")
	}
	return nil
}

func (s *Store) importArchive(ctx context.Context, work, path, name, tag, from string, sink progress.Sink) (string, error) {
	src, err := s.sources.OpenArchive(ctx, path, tag)
	if err != nil {
		return "", err
	}
	defer src.Close() //nolint:errcheck // only read
	found := src.Image()
	if name == "" {
		if name, err = nameIn(found); err != nil {
			return "", err
		}
	}
	end := sink.Stage("import image " + name)
	about := nameFile{
		Source: strings.TrimSuffix("archive:"+from, ":"), Config: &found.Config, Manifest: found.Digest, Platform: found.Platform.String(),
	}
	file, about, blob, err := convert(ctx, work, content{about: about, tar: func(ctx context.Context, w io.Writer) error {
		return src.WriteTar(ctx, w, sink)
	}})
	if err == nil {
		err = s.depot.Exclusive(ctx, fileOf(name), sink, func(string) error { return s.publish(ctx, name, file, blob, about) })
	}
	end(err)
	return name, err
}

// nameIn returns what an archive calls its image.
func nameIn(found oci.Image) (string, error) {
	if name, err := reference(found.Ref); found.Ref != "" && err == nil {
		return name, nil
	}
	return "", fault.New(fault.Invalid, "the archive doesn't say how the image is called").WithHint("give it a name: --name NAME")
}

// Limits of what is spooled.
const (
	maxArchive = 64 << 30  // bytes
	spareSpace = 256 << 20 // bytes of the disk that are left alone
	spoolStep  = 64 << 20  // bytes between two looks at the disk's free space
	sniffed    = 512       // bytes: the header of a tar
)

// spool writes a stream to a file, because archives may have to be read twice. A stream that is no archive is refused by
// its first bytes: it may have no end.
func spool(ctx context.Context, r io.Reader, path string, sink progress.Sink) error {
	const stage = "receive archive"
	end := sink.Stage(stage)
	err := func() (err error) {
		head := make([]byte, sniffed)
		n, err := io.ReadFull(r, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read archive: %w", err)
		}
		if head = head[:n]; !isArchive(head) {
			return fault.New(fault.Invalid, "this is no archive: neither a tar nor one compressed by gzip, xz or zstd")
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if _, err := f.Write(head); err != nil {
			return err
		}
		total := int64(n)
		for {
			if err := checkSpace(filepath.Dir(path), spareSpace+spoolStep); err != nil {
				return err
			}
			n, err := io.CopyN(f, r, spoolStep)
			total += n
			sink.Send(progress.Update{Stage: stage, Current: total, Unit: "bytes"})
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return fmt.Errorf("read archive: %w", err)
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case total > maxArchive:
				return fault.New(fault.Invalid, "the archive is larger than %d GiB", int64(maxArchive)>>30)
			}
		}
	}()
	end(err)
	return err
}

// isArchive reports whether data begins like an archive that can be imported: a tar with a header whose checksum is right
// (POSIX.1-1988, ustar; older ones have no magic), or what a compressor writes (RFC 1952, RFC 8878, the .xz format).
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	if len(head) < 512 {
		return false
	}
	const at, size = 148, 8 // of the checksum, which counts as spaces in itself
	var want int
	if _, err := fmt.Sscanf(strings.Trim(string(head[at:at+size]), " \x00"), "%o", &want); err != nil || want == 0 {
		return false
	}
	sum := 0
	for i, b := range head[:512] {
		if i >= at && i < at+size {
			b = ' '
		}
		sum += int(b)
	}
	return sum == want
}
