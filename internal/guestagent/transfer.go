package guestagent

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"banger/internal/fault"
	"banger/internal/filetar"
	"banger/internal/guestproto"
)

// put unpacks the archive that the host sends.
func put(s *stream, spec guestproto.PutSpec, home string) error {
	if spec.Home {
		spec.Dir = home
	}
	if spec.Copy != "" {
		return s.putCopy(spec)
	}
	if !filepath.IsAbs(spec.Dir) {
		return fault.New(fault.Invalid, "the directory %q is not absolute", spec.Dir)
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil { // as mkdir -p
		return fileError("make the directory", err)
	}
	root, err := os.OpenRoot(spec.Dir)
	if err != nil {
		return fileError("open the directory", err)
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	body := &dataReader{r: s.r}
	owner := owner(spec.KeepOwner, spec.UID, spec.GID)
	if err := filetar.Unpack(root, body, filetar.Options{Owner: owner, Keep: spec.Keep}); err != nil {
		return fileError("unpack the archive", err)
	}
	return body.drain()
}

// owner of what is unpacked; an agent that is not root can't choose.
func owner(archive bool, uid, gid int) *filetar.Owner {
	if os.Geteuid() != 0 {
		return nil
	}
	return &filetar.Owner{Archive: archive, UID: uid, GID: gid}
}

// putCopy unpacks where a user wants it.
func (s *stream) putCopy(spec guestproto.PutSpec) error {
	u, err := readUser(spec.User)
	if err != nil {
		return err
	}
	dest, body := within(u.home, spec.Dir), &dataReader{r: s.r}
	options := filetar.Options{Owner: owner(spec.KeepOwner, int(u.uid), int(u.gid)), Keep: spec.Keep}
	switch spec.Copy {
	case guestproto.CopyPlace:
		err = filetar.Place(body, dest, "", options)
	case guestproto.CopyInto:
		var root *os.Root
		if root, err = os.OpenRoot(dest); err == nil {
			defer root.Close() //nolint:errcheck // nothing is buffered
			err = filetar.Unpack(root, body, options)
		}
	default:
		err = fault.New(fault.Unsupported, "the agent does not know the way to copy %q", spec.Copy)
	}
	if err != nil {
		return fileError("copy to "+dest, err)
	}
	return body.drain()
}

// within is a path as seen from a directory. A slash at its end stays: it says that a directory is meant.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return strings.TrimSuffix(dir, "/") + "/" + path
}

// dataReader reads FrameData up to FrameEOF.
type dataReader struct {
	r    *guestproto.Reader
	rest []byte
	err  error
}

func (d *dataReader) Read(b []byte) (int, error) {
	for len(d.rest) == 0 && d.err == nil {
		f, err := d.r.Next(guestproto.MaxPayload)
		switch {
		case errors.Is(err, io.EOF):
			d.err = io.ErrUnexpectedEOF // the host gave up
		case err != nil:
			d.err = err
		case f.Type == guestproto.FrameEOF:
			d.err = io.EOF
		case f.Type == guestproto.FrameData:
			d.rest = f.Payload
		default:
			d.err = fault.New(fault.Invalid, "unexpected frame %d", f.Type)
		}
	}
	n := copy(b, d.rest)
	if d.rest = d.rest[n:]; n == 0 {
		return 0, d.err
	}
	return n, nil
}

// drain reads to the end. What follows the archive's end mark is padding; the host wants to be rid of it.
func (d *dataReader) drain() error {
	_, err := io.Copy(io.Discard, d)
	return err
}

// get packs a file or directory for the host.
func get(ctx context.Context, s *stream, spec guestproto.GetSpec) error {
	if spec.Name != "" {
		u, err := readUser(spec.User)
		if err != nil {
			return err
		}
		spec.Path = within(u.home, spec.Path)
	}
	if !filepath.IsAbs(spec.Path) {
		return fault.New(fault.Invalid, "the path %q is not absolute", spec.Path)
	}
	ctx, cancel := s.abandoned(ctx)
	defer cancel()
	// Frames of the largest size, whatever the pieces that the archive is written in.
	out := &filling{w: dataWriter{s.w}}
	w := tar.NewWriter(out)
	path := filepath.Clean(spec.Path)
	if strings.HasSuffix(spec.Path, "/") && path != "/" {
		path += "/." // a symbolic link to a directory is followed, and a file is refused
	}
	err := filetar.Pack(ctx, w, path, filetar.PackOptions{Name: cmp.Or(spec.Name, filepath.Base(filepath.Clean(spec.Path))), Follow: spec.Follow})
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		return fileError("pack "+spec.Path, err)
	}
	return s.done(nil)
}

// dataWriter writes FrameData.
type dataWriter struct{ w *guestproto.Writer }

func (d dataWriter) Write(b []byte) (int, error) { return d.w.Data(guestproto.FrameData, b) }

// filling passes on pieces of MaxData bytes.
type filling struct {
	w    io.Writer
	have []byte
}

func (f *filling) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n := min(len(b)-done, guestproto.MaxData-len(f.have))
		f.have = append(f.have, b[done:done+n]...)
		done += n
		if len(f.have) == guestproto.MaxData {
			if err := f.flush(); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

func (f *filling) flush() error {
	_, err := f.w.Write(f.have)
	f.have = f.have[:0]
	return err
}

// fileError classifies an error of the guest's file system for the host.
func fileError(what string, err error) error {
	kind := fault.KindOf(err)
	switch {
	case kind != fault.Internal:
	case errors.Is(err, fs.ErrNotExist):
		kind = fault.NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = fault.Denied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		kind = fault.Exhausted
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ENOTDIR):
		kind = fault.Invalid
	}
	return fault.New(kind, "%s: %w", what, err)
}
