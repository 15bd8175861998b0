package monitorlink_test

import (
	"errors"
	"io"
	"testing"

	"banger/internal/fault"
	"banger/internal/monitorlink"
)

func TestSamples(t *testing.T) {
	t.Parallel()
	d := newDirs(t)
	start(t, d, roleAnswer)
	c := monitorlink.NewClient(d.Socket())
	s, err := c.Samples(t.Context(), monitorlink.SamplesSpec{History: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's end
	for _, want := range []monitorlink.Sample{{At: 1}, {At: 2, CPUPercent: 1.5, HasGuest: true, Processes: 3}} {
		if got, err := s.Next(); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	bad, err := c.Samples(t.Context(), monitorlink.SamplesSpec{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close() //nolint:errcheck // a test's end
	if _, err := bad.Next(); !fault.Is(err, fault.Corrupt) {
		t.Errorf("no sample: %v", err)
	}
	if _, err := bad.Next(); err == nil || err == io.EOF { //nolint:errorlint // bare, it would be a good end
		t.Errorf("half a line: %v", err)
	}
}
