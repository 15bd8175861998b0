package guestlink_test

import (
	"net"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

// saying is a guest that answers each request with the same frames.
func saying(typ guestproto.FrameType, payloads ...string) *guestlink.Client {
	return guestlink.NewClient(pipeOpener(func(conn net.Conn) {
		_, _ = guestproto.NewReader(conn).Next(guestproto.MaxRequest)
		w := guestproto.NewWriter(conn)
		for _, p := range payloads {
			_ = w.Frame(typ, []byte(p))
		}
	}))
}

func TestHostileStatsAndPorts(t *testing.T) {
	t.Parallel()
	for _, payload := range []string{
		``, `[`, `"x"`, `{"memory_used":1}`, `{"processes":-1}`, `{"cpu_ns":1e300}`, `{"disks":[{"read":-1}]}`,
	} {
		if s, err := saying(guestproto.FrameAnswer, payload).Stats(t.Context()); !fault.Is(err, fault.Corrupt) {
			t.Errorf("stats %q: %+v, %v", payload, s, err)
		}
	}
	for _, payload := range []string{
		``, `[`, `{"ports":[{}]}`, `{"ports":[{"protocol":"tcp","address":"a","port":1}]}`, `{"ports":[{"protocol":"tcp","address":"::","port":65536}]}`,
		`{"ports":[` + strings.Repeat(`{"protocol":"tcp","address":"::","port":1},`, 200) + `{}]}`,
	} {
		if p, err := saying(guestproto.FrameAnswer, payload).Ports(t.Context()); !fault.Is(err, fault.Corrupt) {
			t.Errorf("ports %q: %+v, %v", payload, p, err)
		}
	}
	if _, err := saying(guestproto.FrameDone, "").Stats(t.Context()); !fault.Is(err, fault.Corrupt) {
		t.Errorf("another frame: %v", err)
	}
}

func TestPortsAreCleanedAndWatched(t *testing.T) {
	t.Parallel()
	const one = `{"ports":[{"protocol":"tcp","address":"0.0.0.0","port":80,"process":"a\u001b[2J\nb"}]}`
	w, err := saying(guestproto.FrameAnswer, one, `{"ports":[]}`).WatchPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	want := guestproto.Port{Protocol: "tcp", Address: "0.0.0.0", Port: 80, Process: "a?[2J b"}
	if ports, err := w.Next(); err != nil || len(ports) != 1 || ports[0] != want {
		t.Errorf("first: %+v, %v", ports, err)
	}
	if ports, err := w.Next(); err != nil || len(ports) != 0 {
		t.Errorf("then: %+v, %v", ports, err)
	}
	if _, err := w.Next(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("at the end: %v", err)
	}
	s, err := saying(guestproto.FrameAnswer, `{"memory_total":2,"memory_used":1,"disks":[{"serial":"a\u001bb"}]}`).Stats(t.Context())
	if err != nil || s.MemoryUsed != 1 || s.Disks[0].Serial != "a?b" {
		t.Errorf("stats: %+v, %v", s, err)
	}
}
