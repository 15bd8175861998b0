package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/rootfs"
)

// content is a root filesystem on its way into the store.
type content struct {
	name  string
	about nameFile // all but digest and time
	// tar writes the root filesystem as a tar stream.
	tar func(ctx context.Context, w io.Writer) error
}

// add makes an image of a root filesystem and publishes it. work is a directory of the depot, and the lock of the name is
// held. The root filesystem streams into the image; there is no archive in between.
func (s *shelf) add(ctx context.Context, work string, c content) error {
	file, about, blob, err := convert(ctx, work, c)
	if err != nil {
		return err
	}
	return s.publish(ctx, c.name, file, blob, about)
}

// convert makes the filesystem of an image in the directory work, and says what is to be recorded of it.
func convert(ctx context.Context, work string, c content) (file string, n nameFile, b blobFile, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := c.tar(ctx, pw)
		pw.CloseWithError(err) // nil means end of file
		written <- err
	}()
	file = filepath.Join(work, "root.ext4")
	hasSystemd := false
	info, err := rootfs.Convert(ctx, pr, file, rootfs.Options{Visit: func(h *tar.Header) {
		hasSystemd = hasSystemd || isSystemd(h)
	}})
	if err != nil {
		cancel(err)
	}
	pr.CloseWithError(io.ErrClosedPipe)
	// Whichever failed first is the reason; the other only met its end.
	if werr := <-written; werr != nil && (err == nil || errors.Is(err, werr)) {
		return "", nameFile{}, blobFile{}, werr
	}
	if err != nil {
		return "", nameFile{}, blobFile{}, err
	}
	n = c.about
	n.Digest, n.Created = info.Digest, time.Now().UTC().Truncate(time.Second)
	b = blobFile{Size: info.Size, Created: n.Created, Source: n.Source, HasSystemd: hasSystemd}
	if n.Config != nil {
		b.Config = *n.Config
	}
	return file, n, b, nil
}

// isSystemd reports whether an entry is systemd's own binary, where every distribution has it.
func isSystemd(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg && (h.Name == "lib/systemd/systemd" || h.Name == "usr/lib/systemd/systemd")
}

func checkSpace(dir string, need int64) error {
	free, err := freeSpace(dir)
	if err != nil {
		return err
	}
	if free < need {
		return fault.New(fault.Exhausted, "making the image needs %d MB of free space, %s has %d MB", need>>20, dir, free>>20).
			WithHint("free some space and try again: banger image prune")
	}
	return nil
}

func freeSpace(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("how much space is free: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil // far from overflowing
}
