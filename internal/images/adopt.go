package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"banger/internal/fault"
	"banger/internal/progress"
)

// Adopt copies a registered image into the store. Its names, and the VMs that use it, have the copy from then on; the user's
// file stays, and may go. An image that is in the store already is fault.Precondition, as is a file that is not what was
// registered.
func (s *shelf) Adopt(ctx context.Context, img Image, sink progress.Sink) (Image, error) {
	err := s.depot.Exclusive(ctx, fileOf(cmp.Or(img.Name, img.Digest)), sink, func(work string) error {
		img, err := s.ByDigest(img.Digest) // as it is now
		if err != nil {
			return err
		}
		if !img.Registered {
			return fault.New(fault.Precondition, "the store has a copy of the image already")
		}
		file := filepath.Join(work, "root.ext4")
		stage := "copy " + filepath.Base(img.RootPath)
		end := sink.Stage(stage)
		err = copyRegistered(ctx, img, file, func(done int64) {
			sink.Send(progress.Update{Stage: stage, Current: done, Total: img.Size, Unit: "bytes"})
		})
		end(err)
		if err != nil {
			return err
		}
		return replaceRegistered(ctx, s, img, file)
	})
	if err != nil {
		return Image{}, fmt.Errorf("promote image %s: %w", cmp.Or(img.Name, img.Digest), err)
	}
	if img.Name == "" {
		return s.ByDigest(img.Digest)
	}
	return s.byName(img.Name)
}

// copyRegistered writes the file of a registered image to stable storage and makes sure that it is what was registered.
func copyRegistered(ctx context.Context, img Image, to string, tell func(done int64)) (err error) {
	from, err := os.Open(img.RootPath)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := checkSpace(filepath.Dir(to), allocated(info)+spareSpace); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	digest, size, err := copySparse(ctx, f, from, tell)
	if err != nil {
		return fmt.Errorf("copy %s: %w", img.RootPath, err)
	}
	if digest != img.Digest || size != img.Size {
		return fault.New(fault.Precondition, "the registered file %s has changed since it was registered", img.RootPath).
			WithHint("register it again: banger image register --name NAME --rootfs %s", img.RootPath)
	}
	return errors.Join(f.Chmod(0o444), f.Sync())
}

// copySparse copies a file and leaves holes where it has nothing but zeros. It returns digest and size of what it read.
func copySparse(ctx context.Context, to *os.File, from io.Reader, tell func(done int64)) (digest string, size int64, err error) {
	const piece = 64 << 10 // bytes; as fine as holes get
	hash, buf, told := sha256.New(), make([]byte, piece), int64(0)
	for {
		if ctx.Err() != nil {
			return "", 0, context.Cause(ctx)
		}
		n, err := io.ReadFull(from, buf)
		hash.Write(buf[:n])
		if !allZero(buf[:n]) {
			if _, err := to.WriteAt(buf[:n], size); err != nil {
				return "", 0, err
			}
		}
		if size += int64(n); size-told >= tellStep {
			told = size
			tell(size)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return "sha256:" + hex.EncodeToString(hash.Sum(nil)), size, to.Truncate(size)
		}
		if err != nil {
			return "", 0, err
		}
	}
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// replaceRegistered puts a copy in the place of a registered file.
func replaceRegistered(ctx context.Context, s *shelf, img Image, file string) error {
	to, err := s.blobPath(img.Digest)
	if err != nil {
		return err
	}
	return s.publishing(ctx, func(work string) error {
		var b blobFile
		if err := readJSON(metaPath(to), &b); err != nil {
			return fault.New(fault.NotFound, "it has been deleted meanwhile: %w", err)
		}
		b.File = nil
		return errors.Join(s.publishBlob(work, file, to, b), syncDir(s.blobDir()))
	})
}
