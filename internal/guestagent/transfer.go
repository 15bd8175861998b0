package guestagent

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// put unpacks the archive that the host sends.
func put(s *stream, spec guestproto.PutSpec, home string) error {
	if spec.Home {
		spec.Dir = home
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
	if err := unpack(root, body, ownership{keep: spec.KeepOwner, uid: spec.UID, gid: spec.GID, stay: spec.Keep}); err != nil {
		return fileError("unpack the archive", err)
	}
	// What follows the archive's end mark is padding; the host wants to be rid of it.
	_, err = io.Copy(io.Discard, body)
	return err
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

// get packs a file or directory for the host.
func get(ctx context.Context, s *stream, spec guestproto.GetSpec) error {
	if !filepath.IsAbs(spec.Path) {
		return fault.New(fault.Invalid, "the path %q is not absolute", spec.Path)
	}
	ctx, cancel := s.abandoned(ctx)
	defer cancel()
	w := tar.NewWriter(dataWriter{s.w})
	err := pack(ctx, w, filepath.Clean(spec.Path))
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return fileError("pack "+spec.Path, err)
	}
	return s.done(nil)
}

// dataWriter writes FrameData.
type dataWriter struct{ w *guestproto.Writer }

func (d dataWriter) Write(b []byte) (int, error) { return d.w.Data(guestproto.FrameData, b) }

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

// dial connects to something in the guest and copies both ways.
func dial(ctx context.Context, s *stream, spec guestproto.DialSpec) error {
	switch spec.Network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return fault.New(fault.Invalid, "can't connect by %q: tcp or unix", spec.Network)
	}
	var d net.Dialer
	// The host may give up meanwhile; its first frame must not be lost to finding out, so the kernel's timeout decides.
	conn, err := d.DialContext(ctx, spec.Network, spec.Addr)
	if err != nil {
		return fault.New(fault.Unavailable, "connect in the guest: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is buffered
	if err := s.done(nil); err != nil {
		return nil //nolint:nilerr // nobody is left to tell
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	received := make(chan struct{})
	go func() {
		defer close(received)
		_, err := io.Copy(conn, &dataReader{r: s.r})
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
		} else {
			_ = conn.Close()
		}
	}()
	if _, err := io.Copy(dataWriter{s.w}, onlyReader{conn}); err == nil {
		err = s.w.Frame(guestproto.FrameEOF, nil)
		if err == nil {
			<-received
		}
	}
	return nil
}

// onlyReader hides the methods that make io.Copy bypass its buffer.
type onlyReader struct{ io.Reader }
