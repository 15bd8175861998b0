package rootfs

import (
	"archive/tar"
	"errors"
	"io"
	"math"
	"path"
	"strings"

	"banger/internal/fault"
)

// Limits of one entry.
const (
	maxName     = 255       // bytes in one component of a path (ext4, directory entry)
	maxPath     = 4095      // bytes in a path or a symbolic link's target (PATH_MAX)
	maxFileSize = 32 << 30  // bytes; the filesystem writer lays out more than 42 GiB in one file wrongly
	maxXattrs   = 3 << 10   // bytes of all names and values of one file; ext4 keeps them in the inode and one block
	maxMajor    = 1<<12 - 1 // device numbers as Linux encodes them in 32 bits
	maxMinor    = 1<<20 - 1 //
	maxID       = 1<<32 - 2 // the last one means "no change"
	blockSize   = 4096      // bytes
	xattrPrefix = "SCHILY.xattr."
)

// checker rewrites an archive so that it holds nothing but what a filesystem may hold.
type checker struct {
	r       io.Reader
	opts    Options
	entries int
	bytes   int64 // of content, in whole blocks
}

// copyTo writes the checked archive and reads the input to its end.
func (c *checker) copyTo(w io.Writer) error {
	tr, tw := tar.NewReader(c.r), tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readError(err)
		}
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		clean, err := c.check(hdr)
		if err != nil {
			return err
		}
		if c.opts.Visit != nil {
			c.opts.Visit(clean)
		}
		if err := tw.WriteHeader(clean); err != nil {
			return writeError(clean.Name, err)
		}
		if clean.Size == 0 {
			continue
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, entryReader{tr}, buf); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return writeError("the end", err)
	}
	// What follows the end marker is padding. The producer must be able to write it.
	_, err := io.Copy(io.Discard, c.r)
	return err
}

// entryReader marks errors of the archive, so that they are told from errors of the image.
type entryReader struct{ r io.Reader }

func (e entryReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = readError(err)
	}
	return n, err
}

func readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.New(fault.Corrupt, "the archive is damaged: %w", err)
	}
	return err
}

func writeError(name string, err error) error {
	if errors.Is(err, io.ErrClosedPipe) {
		return err // the other side has failed and says why
	}
	return fault.New(fault.Invalid, "bad archive entry %q: %w", name, err)
}

// check returns a header with a clean name and nothing in it that the filesystem can't hold.
func (c *checker) check(h *tar.Header) (*tar.Header, error) {
	bad := func(format string, args ...any) (*tar.Header, error) {
		return nil, fault.New(fault.Invalid, "bad archive entry %.200q: "+format, append([]any{h.Name}, args...)...)
	}
	if c.entries++; c.entries > c.opts.MaxEntries {
		return nil, fault.New(fault.Invalid, "the archive has more than %d entries", c.opts.MaxEntries)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return bad("%w", err)
	}
	out := &tar.Header{
		Name: name, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, AccessTime: h.AccessTime, ChangeTime: h.ChangeTime, Format: tar.FormatPAX,
	}
	if out.AccessTime.IsZero() {
		out.AccessTime = h.ModTime
	}
	if out.ChangeTime.IsZero() {
		out.ChangeTime = h.ModTime
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > maxID || int64(h.Gid) > maxID {
		return bad("owner %d:%d out of range", h.Uid, h.Gid)
	}
	if out.PAXRecords, err = xattrs(h); err != nil {
		return bad("%w", err)
	}
	if err := c.checkType(h, out); err != nil {
		return bad("%w", err)
	}
	if name == "." && out.Typeflag != tar.TypeDir {
		return bad("the root is not a directory")
	}
	if c.bytes > c.opts.MaxSize {
		return nil, tooBig(c.opts.MaxSize)
	}
	return out, nil
}

// checkType fills in what depends on the type of the entry.
func (c *checker) checkType(h, out *tar.Header) error {
	out.Typeflag = h.Typeflag
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		out.Typeflag = tar.TypeReg
		if h.Size < 0 || h.Size > maxFileSize {
			return errors.New("absurd size")
		}
		out.Size = h.Size
		if blocks := (h.Size + blockSize - 1) / blockSize; c.bytes <= math.MaxInt64-blocks*blockSize {
			c.bytes += blocks * blockSize
		}
	case tar.TypeLink:
		target, err := cleanName(h.Linkname)
		if err != nil {
			return fault.New(fault.Invalid, "bad link target %.200q: %w", h.Linkname, err)
		}
		out.Linkname = target
		out.PAXRecords = nil
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
			return errors.New("bad target of symbolic link")
		}
		out.Linkname = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return errors.New("device number out of range")
		}
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
	case tar.TypeDir, tar.TypeFifo:
	default:
		return fault.New(fault.Invalid, "unknown type %q", h.Typeflag)
	}
	return nil
}

// cleanName returns a path relative to the root, "." for the root itself. A leading slash is dropped, as tar does; a
// component ".." is refused, not resolved.
func cleanName(name string) (string, error) {
	if name == "" || len(name) > maxPath {
		return "", errors.New("empty or too long name")
	}
	if strings.ContainsRune(name, 0) {
		return "", errors.New("zero byte in name")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("path leads out of the root")
		}
		if len(part) > maxName {
			return "", errors.New("name longer than 255 bytes")
		}
	}
	return path.Clean("./" + name), nil
}

// xattrs keeps the extended attributes of the PAX records, and only those.
func xattrs(h *tar.Header) (map[string]string, error) {
	var kept map[string]string
	total := 0
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok {
			continue
		}
		total += len(attr) + len(value) + 16
		if attr == "" || len(attr) > maxName || total > maxXattrs {
			return nil, errors.New("extended attributes too big")
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[key] = value
	}
	return kept, nil
}
