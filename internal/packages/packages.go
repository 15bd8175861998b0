// Package packages reads the files in Debian (.deb) and RPM packages, as a stream and without the programs that
// otherwise do so. No scripts run, no signatures are checked, and nothing is written.
//
// A package is foreign: names are checked to stay within the package, and entries, lengths and the memory for unpacking
// are bounded. The amount of unpacked data is not: whoever reads the entries decides how much is enough.
//
// The container formats are read here, because both are a page of code if nothing but the files is wanted, while the
// libraries for them bring signatures, dependencies and write support along.
package packages

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"banger/internal/fault"
)

// Bounds on what a package may hold. Kernels with all their modules have some 10,000 files.
const (
	maxEntries = 200_000
	maxName    = 4096      // bytes: PATH_MAX
	maxFile    = 4 << 30   // bytes of one file
	maxDict    = 128 << 20 // bytes that unpacking may look back
)

// Entry is one file of a package.
type Entry struct {
	Name string      // clean and relative, such as "boot/vmlinuz-6.1.0"; "." is the root
	Mode fs.FileMode // type and permissions; a hard link is fs.ModeIrregular
	Size int64       // bytes
}

// Package is an open package.
type Package struct {
	Name    string // empty if it doesn't tell
	Version string
	file    *os.File
	close   func()
	next    func() (Entry, io.Reader, error)
	entries int
}

// Is reports whether a file that begins with these bytes (at least 8) is a package that Open reads.
func Is(head []byte) bool {
	return bytes.HasPrefix(head, []byte(arMagic)) || bytes.HasPrefix(head, []byte(rpmMagic))
}

// Open opens a package; fault.Invalid if the file is none, fault.Corrupt if it is damaged.
func Open(file string) (*Package, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	p := &Package{file: f, close: func() {}}
	r := bufio.NewReaderSize(f, 1<<20)
	head, _ := r.Peek(8)
	switch {
	case bytes.HasPrefix(head, []byte(arMagic)):
		err = p.openDeb(r)
	case bytes.HasPrefix(head, []byte(rpmMagic)):
		err = p.openRPM(r)
	default:
		err = fault.New(fault.Invalid, "%s is neither a Debian nor an RPM package", path.Base(file))
	}
	if err != nil {
		p.Close()
		return nil, corrupt("read package "+path.Base(file), err)
	}
	return p, nil
}

// Close gives back what the package holds.
func (p *Package) Close() {
	p.close()
	_ = p.file.Close()
}

// Next returns the next file and its content, to be read before the next call; io.EOF after the last. Damage, names that
// lead out of the package, and absurd numbers are fault.Corrupt.
func (p *Package) Next() (Entry, io.Reader, error) {
	e, r, err := p.next()
	if errors.Is(err, io.EOF) && err == io.EOF { //nolint:errorlint // a wrapped one is damage
		return e, nil, io.EOF
	}
	if err == nil {
		e.Name, err = localName(e.Name)
	}
	if p.entries++; err == nil && (p.entries > maxEntries || e.Size < 0 || e.Size > maxFile) {
		err = errors.New("absurdly many or large files")
	}
	if err != nil {
		return Entry{}, nil, corrupt("read package "+path.Base(p.file.Name()), err)
	}
	return e, r, nil
}

// localName makes a name relative; one that leads out of the package is an error.
func localName(name string) (string, error) {
	if len(name) > maxName || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("bad name %.100q", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("the name %.100q leads out of the package", name)
		}
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	return clean, nil
}

// corrupt classifies errors in what a package holds. What the host reports stays as it is.
func corrupt(doing string, err error) error {
	_, ofHost := errors.AsType[*fs.PathError](err)
	if _, classified := errors.AsType[*fault.Error](err); ofHost || classified {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if err == io.EOF { //nolint:errorlint // a bare one
		err = io.ErrUnexpectedEOF
	}
	return fault.New(fault.Corrupt, "%s: %w", doing, err).WithHint("get the package again")
}

// unpacked returns the content of compressed data, by its first bytes.
func unpacked(r *bufio.Reader) (_ io.Reader, end func(), err error) {
	head, _ := r.Peek(13)
	is := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	end = func() {}
	switch {
	case is("\x1f\x8b"):
		z, err := gzip.NewReader(r)
		return z, end, err
	case is("\xfd7zXZ\x00"):
		if err := checkXZ(r); err != nil {
			return nil, end, err
		}
		z, err := xz.NewReader(r)
		return z, end, err
	case is("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxDict), zstd.WithDecoderMaxWindow(maxDict), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, end, err
		}
		return z, z.Close, nil
	case is("BZh"):
		return bzip2.NewReader(r), end, nil
	case is("\x5d\x00\x00"):
		if len(head) < 13 || head[4] > maxDict>>24 {
			return nil, end, errors.New("absurd size of LZMA dictionary")
		}
		z, err := lzma.NewReader(r)
		return z, end, err
	default:
		return r, end, nil
	}
}

// checkXZ refuses XZ data that would take absurdly much memory to unpack: the size of the dictionary is in the last property
// of the first block's header (xz-file-format.txt, 3.1 and 5.3.1).
func checkXZ(r *bufio.Reader) error {
	const streamHeader, mostHeader, lzma2 = 12, 1024, 0x21
	head, _ := r.Peek(streamHeader + mostHeader)
	if len(head) <= streamHeader {
		return io.ErrUnexpectedEOF
	}
	block := head[streamHeader:]
	block = block[:min(len(block), (int(block[0])+1)*4)]
	at := bytes.LastIndex(block, []byte{lzma2, 1})
	if block[0] != 0 && (at < 0 || at+2 >= len(block) || block[at+2] > 30) { // 30: 128 MiB
		return errors.New("XZ data that would take absurdly much memory")
	}
	return nil
}
