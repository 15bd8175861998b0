// Package diskcopy copies large sparse files: disks, and the memory of guests. It shares the blocks of the original where
// the file system can (a reflink), and else copies what is not a hole, within the kernel. It owns no file once it has
// returned, and forces nothing to the disk.
//
// The original must not change meanwhile: whoever copies the disk of a VM keeps its vCPUs still.
package diskcopy

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Clone makes the new file dst (0600) a copy of src, of the same size, with its holes. fault.Exists: dst is there
// already, and stays as it is; fault.NotFound: src is not there; fault.Exhausted: no room. On any other error, the
// context's end included, dst is not left behind.
func Clone(ctx context.Context, dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return classify(src, err)
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return classify(src, err)
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, os.Remove(dst))
		}
	}()
	return Copy(ctx, out, in)
}

// Copy makes the empty file dst, open for reading and writing, a copy of src. Its errors are those of [Clone]; after one
// dst is in any state. The files' offsets move.
func Copy(ctx context.Context, dst, src *os.File) error {
	if err := copyFile(ctx, dst, src); err != nil {
		return classify(src.Name(), err)
	}
	return nil
}

func classify(src string, err error) error {
	kind := fault.KindOf(err)
	switch {
	case errors.Is(err, fs.ErrExist):
		kind = fault.Exists
	case errors.Is(err, fs.ErrNotExist):
		kind = fault.NotFound
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		kind = fault.Exhausted
	}
	return fault.New(kind, "copy %s: %w", src, err)
}

func copyFile(ctx context.Context, dst, src *os.File) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fault.New(fault.Invalid, "it is no regular file (%s)", info.Mode().Type())
	}
	in, out := int(src.Fd()), int(dst.Fd())
	if unix.IoctlFileClone(out, in) == nil { // whatever it fails with, copying may work
		return nil
	}
	if err := unix.Ftruncate(out, info.Size()); err != nil {
		return os.NewSyscallError("ftruncate", err)
	}
	for at := int64(0); at < info.Size(); {
		from, to, err := nextData(in, at, info.Size())
		if err != nil || from == to {
			return err
		}
		if err := copyRange(ctx, dst, src, from, to); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// nextData returns the next run of bytes that is no hole; an empty one if there is none. A file system that knows no holes
// says that all is data (lseek(2)).
func nextData(fd int, at, size int64) (from, to int64, err error) {
	from, err = unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, nil
	case errors.Is(err, unix.EINVAL):
		return at, size, nil
	case err != nil:
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	if to, err = unix.Seek(fd, from, unix.SEEK_HOLE); err != nil {
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	if to = min(to, size); from >= to {
		return 0, 0, nil
	}
	return from, to, nil
}

// piece is how many bytes are copied between two looks whether the caller has given up: some milliseconds' worth.
const piece = 16 << 20

// copyRange copies the bytes of src from one offset to another to the same place in dst.
func copyRange(ctx context.Context, dst, src *os.File, from, to int64) error {
	inKernel := true
	for from < to {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		size := min(to-from, piece)
		if inKernel {
			at := from // CopyFileRange moves it
			n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &at, int(size), 0)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err == nil && n > 0:
				continue
			case err == nil:
				return io.ErrUnexpectedEOF // the file has shrunk
			case isUnable(err):
				inKernel = false
				continue
			default:
				return os.NewSyscallError("copy_file_range", err)
			}
		}
		n, err := io.Copy(io.NewOffsetWriter(dst, from), io.NewSectionReader(src, from, size))
		if err != nil {
			return err
		}
		if n < size {
			return io.ErrUnexpectedEOF
		}
		from += n
	}
	return nil
}

// isUnable reports whether the kernel can't copy between these two file systems itself (copy_file_range(2)).
func isUnable(err error) bool {
	for _, e := range []error{unix.EXDEV, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.EPERM, unix.EBADF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
