package guestproto_test

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	"banger/internal/guestproto"
)

func goodStats() guestproto.Stats {
	return guestproto.Stats{
		CPUNS: 5, MemoryTotal: 100, MemoryUsed: 50, Processes: 3, Load1: 0.5,
		Disks: []guestproto.DiskStats{{Serial: "base", Read: 1, Written: 2}},
	}
}

func TestStatsCheck(t *testing.T) {
	t.Parallel()
	if err := goodStats().Check(); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, spoil := range map[string]func(*guestproto.Stats){
		"negative CPU":         func(s *guestproto.Stats) { s.CPUNS = -1 },
		"absurd CPU":           func(s *guestproto.Stats) { s.CPUNS = math.MaxInt64 },
		"negative memory":      func(s *guestproto.Stats) { s.MemoryUsed = -1 },
		"more used than there": func(s *guestproto.Stats) { s.MemoryUsed = 101 },
		"absurd memory":        func(s *guestproto.Stats) { s.MemoryTotal = math.MaxInt64 },
		"negative processes":   func(s *guestproto.Stats) { s.Processes = -1 },
		"too many processes":   func(s *guestproto.Stats) { s.Processes = 1 << 31 },
		"load is no number":    func(s *guestproto.Stats) { s.Load1 = math.NaN() },
		"many disks":           func(s *guestproto.Stats) { s.Disks = make([]guestproto.DiskStats, guestproto.MaxDisks+1) },
		"long serial":          func(s *guestproto.Stats) { s.Disks[0].Serial = strings.Repeat("x", 21) },
		"negative disk":        func(s *guestproto.Stats) { s.Disks[0].Written = -1 },
	} {
		s := goodStats()
		spoil(&s)
		if s.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestPortsCheck(t *testing.T) {
	t.Parallel()
	good := guestproto.Port{Protocol: "tcp", Address: "127.0.0.1", Port: 80, Process: "nginx"}
	for name, tc := range map[string]struct {
		spoil func(*guestproto.Port)
		ok    bool
	}{
		"good":          {func(*guestproto.Port) {}, true},
		"IPv6, no name": {func(p *guestproto.Port) { p.Address, p.Process = "::", "" }, true},
		"host name":     {func(p *guestproto.Port) { p.Address = "localhost" }, false},
		"zone":          {func(p *guestproto.Port) { p.Address = "fe80::1%\x1b[2J" }, false},
		"protocol":      {func(p *guestproto.Port) { p.Protocol = "sctp" }, false},
		"port 0":        {func(p *guestproto.Port) { p.Port = 0 }, false},
		"long name":     {func(p *guestproto.Port) { p.Process = strings.Repeat("x", 16) }, false},
	} {
		p := good
		tc.spoil(&p)
		if err := (guestproto.Ports{Ports: []guestproto.Port{p}}).Check(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if (guestproto.Ports{Ports: slices.Repeat([]guestproto.Port{good}, guestproto.MaxPorts+1)}).Check() == nil {
		t.Error("too many ports are taken")
	}
}

func TestLargestAnswersFitInAFrame(t *testing.T) {
	t.Parallel()
	port := guestproto.Port{
		Protocol: "udp", Address: "1111:2222:3333:4444:5555:6666:7777:8888", Port: 65535,
		Process: strings.Repeat("<", guestproto.MaxProcessName), // six bytes each in JSON
	}
	ports, err := json.Marshal(guestproto.Ports{Ports: slices.Repeat([]guestproto.Port{port}, guestproto.MaxPorts)})
	if err != nil || len(ports) > guestproto.MaxPayload {
		t.Errorf("ports: %d bytes, %v", len(ports), err)
	}
	disk := guestproto.DiskStats{Serial: strings.Repeat("<", 20), Read: 1 << 60, Written: 1 << 60}
	stats, err := json.Marshal(guestproto.Stats{CPUNS: 1 << 62, Disks: slices.Repeat([]guestproto.DiskStats{disk}, guestproto.MaxDisks)})
	if err != nil || len(stats) > guestproto.MaxPayload {
		t.Errorf("stats: %d bytes, %v", len(stats), err)
	}
}
