package kernels

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// maxKernel bounds an unpacked kernel, in bytes.
const maxKernel = 512 << 20

// extractELF writes the ELF file that a bzImage unpacks when it boots. It fails for methods of compression that are not
// at hand.
func extractELF(bzImage, to string) (err error) {
	data, err := os.ReadFile(bzImage)
	if err != nil {
		return err
	}
	kernel, err := payload(data)
	if err != nil {
		return fmt.Errorf("unpack kernel: %w", err)
	}
	if err := os.WriteFile(to, kernel, 0o444); err != nil { //nolint:gosec // nothing secret
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// payload finds and unpacks the kernel in a bzImage: Documentation/arch/x86/boot.rst, protocol 2.08 and later.
func payload(image []byte) ([]byte, error) {
	const (
		setupSects = 0x1f1 // sectors of the real-mode code, less one
		magic      = 0x202
		version    = 0x206
		offset     = 0x248 // of the payload, from the protected-mode code
		length     = 0x24c
		headerEnd  = 0x250
	)
	le := binary.LittleEndian
	if len(image) < headerEnd || string(image[magic:magic+4]) != "HdrS" || le.Uint16(image[version:]) < 0x208 {
		return nil, errors.New("not a bzImage")
	}
	sects := int64(image[setupSects])
	if sects == 0 {
		sects = 4
	}
	begin := (sects+1)*512 + int64(le.Uint32(image[offset:]))
	end := begin + int64(le.Uint32(image[length:]))
	if end > int64(len(image)) || end-begin < 8 {
		return nil, errors.New("its payload lies outside of it")
	}
	kernel, err := decompress(image[begin:end])
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(kernel, []byte("\x7fELF")) {
		return nil, errors.New("its payload is not an ELF file")
	}
	return kernel, nil
}

// decompress unpacks a payload. But for those that need none and gzip, payloads end with the unpacked size in four bytes,
// which are not part of the data.
func decompress(data []byte) ([]byte, error) {
	packed, size := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	switch {
	case bytes.HasPrefix(data, []byte("\x7fELF")):
		return data, nil
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return io.ReadAll(io.LimitReader(z, maxKernel))
	case size > maxKernel:
		return nil, errors.New("absurd size")
	case bytes.HasPrefix(data, lz4Magic):
		return unpackLZ4(packed, int(size))
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxKernel), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(packed, nil)
	default:
		return nil, fmt.Errorf("unknown compression % x", data[:4])
	}
}
