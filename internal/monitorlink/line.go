package monitorlink

import (
	"encoding/json"
	"fmt"
	"io"

	"banger/internal/fault"
)

// maxLine bounds a line of the protocol, in bytes.
const maxLine = 1 << 20

// WriteLine writes a value as one line of JSON.
func WriteLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// ReadLine reads one line of JSON and not a byte beyond it, because raw bytes may follow.
func ReadLine(r io.Reader, v any) error {
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		if line = append(line, b[0]); len(line) > maxLine {
			return fault.New(fault.Corrupt, "a line of the monitor protocol is longer than %d bytes", maxLine)
		}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fault.New(fault.Corrupt, "a line of the monitor protocol: %w", err)
	}
	return nil
}
