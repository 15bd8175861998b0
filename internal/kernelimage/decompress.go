package kernelimage

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

var errSize = errors.New("absurd size")

// decompress unpacks a payload. But for those that need none and gzip, payloads end with the unpacked size in four bytes,
// which are not part of the data (scripts/Makefile.lib, size_append).
func decompress(data []byte) ([]byte, error) {
	packed, size := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	is := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	switch {
	case is("\x7fELF"):
		return data, nil
	case is("\x1f\x8b"):
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return readAll(z, 0)
	case is("\x89LZO"):
		return nil, errors.New("LZO compression is not supported")
	case size > MaxSize:
		return nil, errSize
	case bytes.HasPrefix(data, lz4Magic):
		return unpackLZ4(packed, int(size))
	case is("\x28\xb5\x2f\xfd"):
		d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderMaxMemory(MaxSize),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return readAll(d, size)
	case is("BZh"):
		return readAll(bzip2.NewReader(bytes.NewReader(packed)), size)
	case is("\xfd7zXZ\x00"):
		return unpackXZ(packed, size)
	case is("\x5d\x00\x00"):
		if len(packed) < lzma.HeaderLen || binary.LittleEndian.Uint32(packed[1:]) > maxDict {
			return nil, errSize
		}
		r, err := lzma.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		return readAll(r, size)
	default:
		return nil, fmt.Errorf("unknown compression % x", data[:4])
	}
}

// readAll reads exactly size bytes; 0: as many as there are, up to MaxSize.
func readAll(r io.Reader, size uint32) ([]byte, error) {
	most := int64(MaxSize)
	if size > 0 {
		most = int64(size)
	}
	out, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(out)) > most, size > 0 && int64(len(out)) != most:
		return nil, errSize
	}
	return out, nil
}
