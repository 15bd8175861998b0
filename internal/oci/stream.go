package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"banger/internal/fault"
)

const (
	maxWindow = 128 << 20 // bytes that a decompressor may look back: what "zstd --ultra" and "zstd --long" need
	chunkSize = 256 << 10 // bytes
)

// layer is one archive of an image. Its data is read twice: what it holds must be known before the first byte is written.
type layer struct {
	Layer
	diffID string            // "sha256:..." of the archive without compression; empty: not known
	data   *io.SectionReader // nil: not fetched yet
	proven bool              // data has the digest
	close  func() error      // nil: data belongs to the source
}

// compression of a file, as its first bytes tell.
type compression string

const (
	plain    compression = "no"
	gzipped  compression = "gzip"
	xzipped  compression = "xz"
	zstded   compression = "zstd"
	xzMagic              = "\xfd7zXZ\x00"
	magicLen             = 32 // bytes that sniff wants
)

func sniff(head []byte) compression {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return gzipped
	case bytes.HasPrefix(head, []byte(xzMagic)):
		return xzipped
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return zstded
	case len(head) > 4 && bytes.HasPrefix(head[1:], []byte("\x2a\x4d\x18")) && head[0]&0xf0 == 0x50:
		return zstded // a skippable frame (RFC 8878, 3.1.2), as zstd:chunked and pzstd begin with
	}
	return plain
}

func sniffAt(r io.ReaderAt) (compression, error) {
	head := make([]byte, magicLen)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return sniff(head[:n]), nil
}

// decompress returns a reader of what r holds, and a function that releases it.
func decompress(r io.Reader, how compression, head []byte) (io.Reader, func(), error) {
	switch how {
	case gzipped:
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	case zstded:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case xzipped:
		if dictionary(head) > maxWindow {
			return nil, nil, errors.New("the xz dictionary is larger than 128 MiB")
		}
		z, err := xz.NewReader(r)
		return z, func() {}, err
	case plain:
	}
	return r, func() {}, nil
}

// dictionary returns the size in bytes of the dictionary that the first block of an xz file asks for; 0 if it isn't
// where encoders put it. The decompressor allocates what it is asked for. (The .xz file format 1.2.0, section 3.1)
func dictionary(head []byte) int64 {
	const lzma2 = 0x21
	if len(head) < 20 || head[13]&0x03 != 0 { // several filters: the decompressor refuses them
		return 0
	}
	at := 14
	for range (head[13]>>6)&1 + head[13]>>7 { // sizes of the block, as numbers of variable length
		for at < len(head) && head[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if at+2 >= len(head) || head[at] != lzma2 {
		return 0
	}
	size, err := lzma.DecodeDictCap(head[at+2])
	if err != nil {
		return 0
	}
	return size
}

// stream is the archive of a layer, decompressed.
type stream struct {
	io.Reader
	stop   func()
	raw    *checksum // of what is stored; nil: not wanted
	cooked *checksum // of what is read; nil: not wanted
}

type checksum struct {
	hash.Hash
	r io.Reader
}

func newChecksum(r io.Reader) *checksum { return &checksum{Hash: sha256.New(), r: r} }

func (c *checksum) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.Write(p[:n]) // never fails
	return n, err
}

func (c *checksum) digest() string { return "sha256:" + hex.EncodeToString(c.Sum(nil)) }

// open starts reading the layer, at most limit bytes of it unpacked. With check, digests are computed on the way, so that
// verify can tell after the last byte whether this is what it should be.
func (l *layer) open(ctx context.Context, limit int64, check bool) (*stream, error) {
	var head [magicLen]byte
	if _, err := l.data.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	how := sniff(head[:])
	s := &stream{stop: func() {}}
	data := io.NewSectionReader(l.data, 0, l.data.Size())
	checkRaw, checkCooked := check && !l.proven && l.Digest != "", check && l.diffID != ""
	if how == plain && check && !checkRaw && !checkCooked {
		s.Reader = &seeker{ctx: ctx, r: data} // contents can be skipped
		return s, nil
	}
	var r io.Reader = data
	if checkRaw {
		s.raw = newChecksum(r)
		r = s.raw
	}
	if how != plain {
		cooked, release, err := decompress(r, how, head[:])
		if err != nil {
			return nil, damaged(err)
		}
		s.stop, r = release, &bounded{r: cooked, left: limit, limit: limit}
	}
	if checkCooked {
		s.cooked = newChecksum(r)
		r = s.cooked
	}
	ahead := readAhead(ctx, r)
	release := s.stop
	s.Reader, s.stop = ahead, func() { ahead.close(); release() }
	return s, nil
}

// verify reads the rest of the stream and compares the digests.
func (s *stream) verify(l *layer) error {
	if s.raw == nil && s.cooked == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, s.Reader); err != nil {
		return err
	}
	if s.raw != nil {
		if _, err := io.Copy(io.Discard, s.raw); err != nil { // what follows the compressed data
			return err
		}
		if got := s.raw.digest(); got != l.Digest {
			return fault.New(fault.Corrupt, "layer %s is damaged: its data has the digest %s", l.Digest, got)
		}
	}
	if s.cooked != nil && s.cooked.digest() != l.diffID {
		return fault.New(fault.Corrupt, "layer %s is not the one that the image's configuration names: unpacked it has the digest %s, not %s",
			l.Digest, s.cooked.digest(), l.diffID)
	}
	return nil
}

// damaged gives an error of a decompressor or archive reader its kind.
func damaged(err error) error {
	if err == nil || fault.KindOf(err) != fault.Internal || isSystem(err) {
		return err
	}
	return fault.New(fault.Corrupt, "the archive is damaged: %s", strings.TrimPrefix(err.Error(), "archive/tar: "))
}

// seeker is a plain archive in a file, which the archive reader may skip through.
type seeker struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   *io.SectionReader
}

func (s *seeker) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

func (s *seeker) Seek(offset int64, whence int) (int64, error) { return s.r.Seek(offset, whence) }

// bounded fails when more is read than there should be.
type bounded struct {
	r           io.Reader
	left, limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fault.New(fault.Invalid, "a layer has more than %d bytes when it is unpacked", b.limit)
	}
	return n, err
}

// ahead reads in a goroutine of its own, which ends with close or at the end of the data.
type ahead struct {
	full, free chan []byte
	quit, done chan struct{}
	buf        []byte // what is being handed out
	rest       []byte // of buf
	err        error  // of the reader; valid once full is closed
}

func readAhead(ctx context.Context, r io.Reader) *ahead {
	const buffers = 4
	a := &ahead{
		full: make(chan []byte, buffers), free: make(chan []byte, buffers), quit: make(chan struct{}), done: make(chan struct{}),
	}
	for range buffers {
		a.free <- make([]byte, chunkSize)
	}
	go func() {
		defer close(a.done)
		defer close(a.full)
		for {
			var buf []byte
			select {
			case buf = <-a.free:
			case <-a.quit:
				return
			case <-ctx.Done():
				a.err = context.Cause(ctx)
				return
			}
			n, err := fill(r, buf[:chunkSize])
			if n > 0 {
				a.full <- buf[:n]
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}()
	return a
}

// fill is io.ReadFull, but for the error: it is the reader's.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		if a.buf != nil {
			a.free <- a.buf
			a.buf = nil
		}
		buf, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.buf, a.rest = buf, buf
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *ahead) close() {
	close(a.quit)
	<-a.done
}
