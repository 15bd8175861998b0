package gitsync

import (
	"bufio"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

// scanPack reads a pack to its end without keeping anything, so that git is only given one whose objects are within bounds,
// as they are and as deltas make them. It returns how many bytes they have, unpacked. The format is that of gitformat-pack.
func scanPack(r io.Reader, idSize int, maxObject, maxTotal int64) (total int64, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	header := make([]byte, 12)
	if _, err := io.ReadFull(in, header); err != nil {
		return 0, fmt.Errorf("read its header: %w", err)
	}
	count, err := packHeader(header)
	if err != nil {
		return 0, err
	}
	var z io.ReadCloser
	for range count {
		kind, size, err := packEntry(in)
		if err != nil {
			return 0, err
		}
		switch kind {
		case 6: // delta with an offset
			_, err = packVarint(in)
		case 7: // delta with an id
			_, err = in.Discard(idSize)
		case 1, 2, 3, 4:
		default:
			err = fmt.Errorf("an object of type %d", kind)
		}
		if err != nil {
			return 0, err
		}
		if z == nil {
			z, err = zlib.NewReader(in)
		} else {
			err = z.(zlib.Resetter).Reset(in, nil)
		}
		if err != nil {
			return 0, err
		}
		whole, err := packObject(z, size, kind >= 6, maxObject)
		if err != nil {
			return 0, err
		}
		if total += whole; total > maxTotal {
			return 0, fmt.Errorf("its objects have more than %d bytes", maxTotal)
		}
	}
	return total, nil
}

// packEntry reads the type and the size of an object.
func packEntry(in io.ByteReader) (kind int, size int64, err error) {
	b, err := in.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	kind, size = int(b>>4&7), int64(b&15)
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = in.ReadByte(); err != nil {
			return 0, 0, err
		}
		if shift > 53 {
			return 0, 0, errors.New("a size without end")
		}
		size |= int64(b&0x7f) << shift
	}
	return kind, size, nil
}

// packVarint skips or reads a number of seven bits a byte, the least significant first.
func packVarint(in io.ByteReader) (n int64, err error) {
	for shift := 0; ; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		if shift > 56 {
			return 0, errors.New("a number without end")
		}
		n |= int64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
}

// packObject unpacks an object of the size that was announced, and returns how large it is, or what a delta makes.
func packObject(z io.Reader, size int64, delta bool, limit int64) (int64, error) {
	if size > limit {
		return 0, fmt.Errorf("an object of %d bytes is larger than the limit of %d", size, limit)
	}
	whole := size
	body := bufio.NewReader(io.LimitReader(z, size+1))
	var read int64
	if delta {
		counted := &countingBytes{r: body}
		_, err := packVarint(counted) // the size of what it is applied to
		if err == nil {
			whole, err = packVarint(counted)
		}
		if err != nil {
			return 0, fmt.Errorf("a delta: %w", err)
		}
		if whole > limit {
			return 0, fmt.Errorf("an object of %d bytes is larger than the limit of %d", whole, limit)
		}
		read = counted.n
	}
	rest, err := io.Copy(io.Discard, body)
	if err != nil {
		return 0, fmt.Errorf("an object: %w", err)
	}
	if read+rest != size {
		return 0, errors.New("an object of another size than announced")
	}
	return whole, nil
}

type countingBytes struct {
	r io.ByteReader
	n int64
}

func (c *countingBytes) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}
