// Package rootfs makes filesystem images: an immutable ext4 image from a tar stream, and blank ext4 disks. It needs no
// privilege and mounts nothing.
//
// It owns the checking of the archive, which may come from anywhere: names, links, sizes and counts are bounded before
// anything reaches the writer of the filesystem. It doesn't own where images are kept or what they are called.
package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"banger/internal/fault"
)

// Default limits of an image.
const (
	DefaultMaxSize    = 16 << 30 // bytes
	DefaultMaxEntries = 2 << 20  // files, directories, links
)

// maxImageSize bounds Options.MaxSize, in bytes: with more the table of block groups outgrows the first group, which the
// writer doesn't expect.
const maxImageSize = 1 << 40

// Options bound an image and let the caller watch it being made.
type Options struct {
	MaxSize    int64             // bytes, content and metadata; 0: DefaultMaxSize
	MaxEntries int               // 0: DefaultMaxEntries
	Visit      func(*tar.Header) // called for every accepted entry, in order, with a clean name; may be nil
}

// Info describes a finished image.
type Info struct {
	Digest  string // "sha256:" and the hexadecimal digest of the whole file
	Size    int64  // bytes, apparent
	Entries int    // entries of the archive
}

// Convert reads a tar stream to its end and writes its content as a read-only ext4 filesystem to the new file path. Modes,
// owners, times, hard links, devices and extended attributes are kept. The file is sparse, has mode 0444 and is on stable
// storage when Convert returns; on error it is removed.
//
// A read of r must end when ctx ends; Convert can't interrupt it. Archives that lie outside the limits or hold
// illegal names fail with fault.Invalid, those that are damaged with fault.Corrupt, a full disk with fault.Exhausted.
func Convert(ctx context.Context, r io.Reader, path string, opts Options) (Info, error) {
	if opts.MaxSize == 0 {
		opts.MaxSize = DefaultMaxSize
	}
	if opts.MaxEntries == 0 {
		opts.MaxEntries = DefaultMaxEntries
	}
	if opts.MaxSize < 0 || opts.MaxSize > maxImageSize {
		return Info{}, fault.New(fault.Invalid, "bad maximum image size %d", opts.MaxSize)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return Info{}, noRoom(fmt.Errorf("create image: %w", err))
	}
	info, err := convert(ctx, r, f, opts)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close image: %w", cerr)
	}
	if err != nil {
		return Info{}, errors.Join(noRoom(err), os.Remove(path))
	}
	return info, nil
}

func convert(ctx context.Context, r io.Reader, f *os.File, opts Options) (Info, error) {
	in := &checker{r: ctxReader{ctx, r}, opts: opts}
	out := &sparseFile{f: f}
	if err := write(in, out, opts.MaxSize); err != nil {
		return Info{}, err
	}
	if err := out.finish(); err != nil {
		return Info{}, fmt.Errorf("write image: %w", err)
	}
	if err := padInodeBitmaps(f); err != nil {
		return Info{}, fmt.Errorf("write image: %w", err)
	}
	if err := f.Chmod(0o444); err != nil {
		return Info{}, fmt.Errorf("protect image: %w", err)
	}
	synced := make(chan error, 1)
	go func() { synced <- f.Sync() }() // the disk works while the processor does
	digest, err := hashFrom(ctx, f)
	if serr := <-synced; serr != nil {
		return Info{}, fmt.Errorf("sync image: %w", serr)
	}
	if err != nil {
		return Info{}, fmt.Errorf("hash image: %w", err)
	}
	return Info{Digest: digest, Size: out.end, Entries: in.entries}, nil
}

// write pumps the checked archive through a pipe into the filesystem writer. Both sides have ended when it returns.
func write(in *checker, out *sparseFile, maxSize int64) error {
	pr, pw := io.Pipe()
	checked := make(chan error, 1)
	go func() {
		bw := bufio.NewWriterSize(pw, 256<<10)
		err := in.copyTo(bw)
		if err == nil {
			err = bw.Flush()
		}
		pw.CloseWithError(err) // nil means end of file
		checked <- err
	}()
	err := tar2ext4.ConvertTarToExt4(pr, out, tar2ext4.MaximumDiskSize(maxSize))
	// The converter stops at the archive's end marker: take the rest, so that the other side ends as well.
	if err == nil {
		_, err = io.Copy(io.Discard, pr)
	}
	pr.CloseWithError(io.ErrClosedPipe)
	if cerr := <-checked; cerr != nil && !errors.Is(cerr, io.ErrClosedPipe) {
		return cerr
	}
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "disk exceeded maximum size"): // the library doesn't export its type
		return tooBig(maxSize)
	case out.err != nil:
		return fmt.Errorf("write image: %w", out.err)
	default:
		return fault.New(fault.Invalid, "the archive can't be made into an image: %w", err)
	}
}

func tooBig(limit int64) error {
	return fault.New(fault.Invalid, "the archive doesn't fit into an image of %d bytes", limit)
}

// noRoom gives an error that comes from a full disk or quota its kind.
func noRoom(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.New(fault.Exhausted, "no space left on the disk: %w", err).WithHint("free some space and try again")
	}
	return err
}

func hashFrom(ctx context.Context, f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, ctxReader{ctx, f}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// HashFile returns "sha256:" and the hexadecimal digest of a file. It reads the whole file.
func HashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	if info, err := f.Stat(); err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", &fs.PathError{Op: "hash", Path: path, Err: errors.New("not a regular file")}
	}
	return hashFrom(ctx, f)
}

// ctxReader makes a reader fail when the context has ended.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
