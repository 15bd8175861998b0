package guestproto

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// FrameType is the first byte of a frame.
type FrameType byte

// The frames of a stream.
const (
	FrameRequest FrameType = iota + 1 // Request; the first frame, host to guest
	FrameError                        // Error; the last frame, guest to host
	FrameDone                         // the request was carried out; no payload
	FrameData                         // bytes: standard input, a tar stream, a connection
	FrameEOF                          // no more FrameData in this direction
	FrameStarted                      // Started
	FrameStdout                       // bytes
	FrameStderr                       // bytes
	FrameExit                         // ExitStatus; the last frame of a command
	FrameCredit                       // u32: so many bytes of standard input were consumed
	FrameSignal                       // u32: signal the command's process group
	FrameResize                       // WindowSize
	FrameAnswer                       // JSON: what the request asked for
	frameEnd
)

// HeaderSize is the size of a frame's header: the type, then the length of the payload as u32 big-endian.
const HeaderSize = 5

// ErrTooLong is the error of a frame that announces more bytes than its reader takes.
var ErrTooLong = errors.New("frame too long")

// Frame is one frame as received. Its payload is valid until the next one is read.
type Frame struct {
	Type    FrameType
	Payload []byte
}

// Reader reads the frames of one stream. It allocates as bytes arrive, never by what a header announces. After an error
// that is not the stream's end, such as a deadline's, Next goes on where it was. It is not safe for concurrent use.
type Reader struct {
	r    io.Reader
	hdr  [HeaderSize]byte
	have int    // bytes of the header that are there
	buf  []byte // what is there of the payload
}

// NewReader returns a reader of frames.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next reads a frame whose payload is at most limit bytes. The end of the stream between two frames is io.EOF, inside one
// io.ErrUnexpectedEOF.
func (r *Reader) Next(limit int) (Frame, error) {
	if r.have == 0 {
		r.buf = r.buf[:0]
	}
	for r.have < HeaderSize {
		n, err := r.r.Read(r.hdr[r.have:])
		if r.have += n; err != nil && r.have < HeaderSize {
			return Frame{}, r.inside(err)
		}
	}
	typ, size := FrameType(r.hdr[0]), binary.BigEndian.Uint32(r.hdr[1:])
	if typ == 0 || typ >= frameEnd {
		return Frame{}, fmt.Errorf("unknown frame type %d", typ)
	}
	if int64(size) > int64(limit) {
		return Frame{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, size, limit)
	}
	for len(r.buf) < int(size) {
		start := len(r.buf)
		r.buf = slices.Grow(r.buf, min(int(size)-start, MaxPayload))
		n, err := r.r.Read(r.buf[start:min(cap(r.buf), int(size))])
		if r.buf = r.buf[:start+n]; err != nil && len(r.buf) < int(size) {
			return Frame{}, r.inside(err)
		}
	}
	r.have = 0
	return Frame{Type: typ, Payload: r.buf}, nil
}

func (r *Reader) inside(err error) error {
	if r.have > 0 && errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Writer writes the frames of one stream, each with one Write. It is safe for concurrent use.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// NewWriter returns a writer of frames.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Frame writes one frame.
func (w *Writer) Frame(typ FrameType, payload []byte) error {
	limit := MaxPayload
	if typ == FrameRequest {
		limit = MaxRequest
	}
	if len(payload) > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, len(payload), limit)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf[:0], byte(typ), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(w.buf[1:], uint32(len(payload))) // bounded above
	w.buf = append(w.buf, payload...)
	_, err := w.w.Write(w.buf)
	if cap(w.buf) > 2*MaxPayload {
		w.buf = nil
	}
	return err
}

// JSON writes one frame whose payload is the JSON of v.
func (w *Writer) JSON(typ FrameType, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame %d: %w", typ, err)
	}
	return w.Frame(typ, payload)
}

// Uint32 writes one frame whose payload is a number.
func (w *Writer) Uint32(typ FrameType, n uint32) error {
	return w.Frame(typ, binary.BigEndian.AppendUint32(nil, n))
}

// Uint32 is the payload as a number.
func (f Frame) Uint32() (uint32, error) {
	if len(f.Payload) != 4 {
		return 0, fmt.Errorf("frame %d holds no number", f.Type)
	}
	return binary.BigEndian.Uint32(f.Payload), nil
}

// Decode unmarshals a payload of JSON.
func (f Frame) Decode(v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("decode frame %d: %w", f.Type, err)
	}
	return nil
}

// Data writes b as frames of a type that carries bytes, as many as it takes. It returns how many bytes went out.
func (w *Writer) Data(typ FrameType, b []byte) (int, error) {
	sent := 0
	for sent < len(b) {
		n := min(len(b)-sent, MaxData)
		if err := w.Frame(typ, b[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// MaxData is how many bytes a frame of data carries, so that with its header it fills one yamux frame.
const MaxData = MaxMuxFrame - HeaderSize
