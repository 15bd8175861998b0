package filetar

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/fault"
)

// Place unpacks the archive of one file or directory as docker cp would: into the destination if that is a directory, else
// under the destination's name, whose directory must exist. name is the first element that all entries must have; empty: the
// one that the first entry has. An archive of the content of a directory, whose name is ".", makes the destination or fills
// it. The destination is absolute, and is followed if it is a symbolic link to a directory.
func Place(archive io.Reader, dest, name string, o Options) error {
	r := tar.NewReader(archive)
	h, err := r.Next()
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "the archive is empty")
	}
	if err != nil {
		return err
	}
	clean := filepath.Clean(h.Name)
	if name == "" {
		name, _, _ = strings.Cut(clean, "/")
	}
	if name != "." && (!filepath.IsLocal(name) || clean != name) {
		return fault.New(fault.Invalid, "the archive begins with the entry %q, not with %q", clip(h.Name), clip(name))
	}
	dir, as, err := landing(dest, name, h.Typeflag == tar.TypeDir || name == ".")
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	u := &unpacker{root: root, options: o, top: name, as: as}
	if err := u.entry(h, r); err != nil {
		return err
	}
	return u.all(r)
}

// landing finds the directory that a copy is unpacked in, and the name that it gets there.
func landing(dest, name string, isDir bool) (dir, as string, err error) {
	parent, base := filepath.Dir(filepath.Clean(dest)), filepath.Base(dest)
	info, err := os.Stat(dest)
	switch {
	case err == nil && info.IsDir():
		return dest, name, nil
	case err == nil && isDir:
		return "", "", fault.New(fault.Invalid, "a directory can't take the place of %s, which is a file", dest)
	case err == nil:
		return parent, base, nil
	case strings.HasSuffix(dest, "/") && !isDir && errors.Is(err, fs.ErrNotExist):
		return "", "", fault.New(fault.NotFound, "there is no directory %s", dest)
	}
	// Also a dangling symbolic link, which the copy replaces.
	if info, statErr := os.Stat(parent); statErr != nil || !info.IsDir() {
		return "", "", fault.New(fault.NotFound, "there is no directory %s", parent)
	}
	if name != "." {
		return parent, base, nil
	}
	if err := os.Mkdir(dest, 0o755); err != nil { // as mkdir
		return "", "", err
	}
	return dest, ".", nil
}
