package monitorlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"banger/internal/fault"
)

// Sample is the use of a VM at one time. Counters count from the VM's start. It has no pointers, because a monitor keeps
// an hour of them.
type Sample struct {
	At           int64   // ns since 1970
	VMMCPU       int64   // CPU time of the VMM process, ns
	VMMResident  int64   // bytes of host memory
	CPUPercent   float64 // of one host CPU, used by the VMM since the sample before
	NetReceived  int64   // bytes, by the guest
	NetSent      int64   // bytes
	NetDenied    int64   // connections and datagrams that the egress policy refused
	DiskUsed     int64   // bytes that the VM's own disks take on the host
	HasGuest     bool    // the fields below are known
	GuestCPU     int64   // CPU time that the guest says to have used, all its CPUs together, ns
	GuestMemory  int64   // bytes in use, caches not counted
	GuestTotal   int64   // bytes of memory that the guest has
	GuestRead    int64   // bytes read from all disks
	GuestWritten int64   // bytes
	Processes    int32
}

// Time is when the sample was taken.
func (s Sample) Time() time.Time { return time.Unix(0, s.At) }

// SamplesSpec is the argument of OpSamples.
type SamplesSpec struct {
	History bool `json:",omitempty"` // begin with the samples of the last hour, oldest first; else with the newest
	Follow  bool `json:",omitempty"` // go on with each new sample until the VM's end
}

// Samples is a stream of samples.
type Samples struct {
	conn net.Conn
	in   *bufio.Reader
}

// Samples begins to read samples. The context bounds the beginning only.
func (c *Client) Samples(ctx context.Context, spec SamplesSpec) (*Samples, error) {
	conn, err := c.request(ctx, Request{Op: OpSamples, Samples: &spec})
	if err != nil {
		return nil, err
	}
	return &Samples{conn: conn, in: bufio.NewReaderSize(conn, 4096)}, nil
}

// Next waits for the next sample. io.EOF: there is none, or there will be none.
func (s *Samples) Next() (Sample, error) {
	line, err := s.in.ReadSlice('\n') // the monitor is ours: its lines are short
	if err != nil {
		if len(line) > 0 || !errors.Is(err, io.EOF) {
			err = fmt.Errorf("read samples: %w", err)
		}
		return Sample{}, err
	}
	var sample Sample
	if err := json.Unmarshal(line, &sample); err != nil {
		return sample, fault.New(fault.Corrupt, "a sample of the monitor: %w", err)
	}
	return sample, nil
}

// Close ends the stream; a Next under way returns an error.
func (s *Samples) Close() error { return s.conn.Close() }
