package cli

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "banger/internal/gen/banger/v1"
)

func (f *fakeDaemon) Stats(
	_ context.Context, r *connect.Request[bangerv1.StatsRequest], s *connect.ServerStream[bangerv1.StatsResponse],
) error {
	return f.stats(r.Msg, s.Send)
}

func (f *fakeDaemon) Ports(context.Context, *connect.Request[bangerv1.PortsRequest]) (*connect.Response[bangerv1.PortsResponse], error) {
	return connect.NewResponse(&bangerv1.PortsResponse{Ports: f.ports}), nil
}

// someSamples are those of a VM whose guest answers and of one whose guest doesn't.
func someSamples() []*bangerv1.StatsResponse {
	at := timestamppb.New(time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC))
	return []*bangerv1.StatsResponse{
		{VmId: "aaaa00000002", Name: "beta", Sample: &bangerv1.Sample{
			At: at, VmmCpu: durationpb.New(1500 * time.Millisecond), CpuPercent: 3.25, VmmResident: 100 << 20, DiskAllocated: 1536,
		}},
		{VmId: "aaaa00000001", Name: "alpha", Sample: &bangerv1.Sample{
			At: at, VmmCpu: durationpb.New(time.Second), CpuPercent: 99.96, VmmResident: 3 << 30, DiskAllocated: 5 << 20,
			GuestCpu: durationpb.New(2500 * time.Millisecond), GuestMemory: 46 << 20, GuestMemoryTotal: 512 << 20, DiskRead: 1023, DiskWritten: 1 << 40,
			NetReceived: 1048575, NetSent: 7, NetDenied: 12, Processes: 53,
		}},
	}
}

// sampling is a daemon that has someSamples, in its own order, of the VMs asked for.
func sampling() *fakeDaemon {
	return &fakeDaemon{vms: someVMs(), stats: func(r *bangerv1.StatsRequest, send func(*bangerv1.StatsResponse) error) error {
		for _, s := range someSamples() {
			if len(r.GetVms()) > 0 && !slices.Contains(r.GetVms(), s.GetVmId()) {
				continue
			}
			for range map[bool]int{false: 1, true: 2}[r.GetFollow()] {
				if err := send(s); err != nil {
					return err
				}
			}
		}
		if slices.Contains(r.GetVms(), "bbbb00000003") {
			return remoteError(connect.CodeFailedPrecondition, "precondition", "VM aaaa is not running: it is stopped", "start it: banger start aaaa")
		}
		return nil
	}}
}

func TestStats(t *testing.T) {
	t.Parallel()
	b := newBench(t, sampling())
	r := b.run("vm", "stats")
	golden(t, "stats.txt", r.stdout)
	if r.status != 0 || r.stderr != "" {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	golden(t, "stats.json", b.run("vm", "stats", "--output", "json").stdout)
	golden(t, "stats.yaml", b.run("vm", "stats", "--output", "yaml").stdout)

	// In the order given, and what is wrong with one does not keep the others from it.
	r = b.run("vm", "stats", "beta", "bbbb", "alpha", "nosuch", "-o", "json")
	var views []sampleView
	if err := json.Unmarshal([]byte(r.stdout), &views); err != nil || len(views) != 2 || views[0].Name != "beta" || views[1].Name != "alpha" {
		t.Errorf("%v, %s", err, r.stdout)
	}
	want := "banger: stats of \"bbbb\": VM aaaa is not running: it is stopped\n  try: start it: banger start aaaa\n" +
		"banger: stats of \"nosuch\": there is no VM \"nosuch\"\n  try: see which there are: banger ps\n"
	if r.status != 125 || r.stderr != want {
		t.Errorf("status %d, stderr %q, want %q", r.status, r.stderr, want)
	}
}

func TestStatsWatch(t *testing.T) {
	t.Parallel()
	b := newBench(t, sampling())
	r := b.run("vm", "stats", "--watch", "alpha")
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	if r.status != 0 || len(lines) != 3 || !strings.HasPrefix(lines[0], "TIME      NAME") || !strings.Contains(lines[2], "alpha                100.0%") {
		t.Errorf("status %d, %s:\n%s", r.status, r.stderr, r.stdout)
	}
	for _, line := range lines {
		if len(line) != len(lines[0]) {
			t.Errorf("the columns are not aligned: %q", line)
		}
	}
	r = b.run("vm", "stats", "-w", "-o", "json")
	for line := range strings.Lines(r.stdout) {
		var view sampleView
		if err := json.Unmarshal([]byte(line), &view); err != nil || (view.Guest != nil) != (view.Name == "alpha") {
			t.Errorf("%q: %v", line, err)
		}
	}
	if strings.Count(r.stdout, "\n") != 4 {
		t.Errorf("JSON:\n%s", r.stdout)
	}
	if r := b.run("vm", "stats", "-w", "-o", "yaml"); r.status != 2 || !strings.Contains(r.stderr, "--output json") {
		t.Errorf("YAML: status %d, %s", r.status, r.stderr)
	}
	if r := b.run("vm", "stats", "-w", "alpha", "nosuch"); r.status != 125 || r.stdout != "" {
		t.Errorf("no such VM: status %d, %s", r.status, r.stdout)
	}
}

func TestAmount(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		-1: "0B", 0: "0B", 1023: "1023B", 1024: "1.0KiB", 1536: "1.5KiB", 1<<20 - 1: "1.0MiB", 1000 << 10: "1.0MiB", 999 << 10: "999.0KiB",
		5 << 30: "5.0GiB", 1 << 60: "1024.0PiB",
	} {
		if got := amount(n); got != want || len(got) > cellWidth {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestTopScreen(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	golden(t, "top.txt", topScreen(topTable(someSamples()), now, 24, 80))
	if small := topScreen(topTable(someSamples()), now, 3, 10); strings.Count(small, "\r\n") != 2 || !strings.Contains(small, "NAME   CPU\x1b[K") {
		t.Errorf("on a small terminal: %q", small)
	}
}

func TestTop(t *testing.T) {
	t.Parallel()
	r := newBench(t, sampling()).run("vm", "top")
	if lines := strings.Split(r.stdout, "\n"); r.status != 0 || len(lines) != 4 || !strings.HasPrefix(lines[1], "alpha") || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("without a terminal: status %d, %s:\n%s", r.status, r.stderr, r.stdout)
	}
	for name, tc := range map[string]struct {
		end    func(*bench, *user)
		status int
	}{
		"q":       {func(_ *bench, u *user) { u.types("xq") }, 0},
		"Ctrl-C":  {func(_ *bench, u *user) { u.types("\x03") }, 0},
		"signal":  {func(b *bench, _ *user) { b.signals <- syscall.SIGTERM }, 128 + 15},
		"failure": {func(*bench, *user) {}, 125},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := sampling()
			samples, calls := d.stats, 0
			d.stats = func(r *bangerv1.StatsRequest, send func(*bangerv1.StatsResponse) error) error {
				if calls++; calls == 2 && name == "failure" {
					return errors.New("boom")
				}
				return samples(r, send)
			}
			b := newBench(t, d)
			u := newUser(t, b)
			wasRaw := make(chan bool, 1)
			go func() {
				u.sees("alpha")
				wasRaw <- u.isRaw()
				b.signals <- syscall.SIGWINCH
				tc.end(b, u)
			}()
			if r := b.run("vm", "top"); r.status != tc.status {
				t.Errorf("status %d", r.status)
			}
			if !<-wasRaw {
				t.Error("the terminal was not raw while top ran")
			}
			if u.isRaw() {
				t.Error("the terminal is still raw")
			}
			u.sees(screenLeave)
		})
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs(), ports: []*bangerv1.Port{
		{Protocol: "tcp", Address: "0.0.0.0", Port: 80, Process: "ng\x1b[2Jinx", HostAddress: "127.0.0.1:8080"}, {Protocol: "udp", Address: "::1", Port: 53},
	}})
	b.run("vm", "ports", "alpha").want(t, 0, "PROTOCOL  ADDRESS     PROCESS    HOST ADDRESS\n"+
		"tcp       0.0.0.0:80  ng?[2Jinx  127.0.0.1:8080\nudp       [::1]:53\n", "")
	golden(t, "ports.json", b.run("vm", "ports", "alpha", "-o", "json").stdout)
	none := newBench(t, &fakeDaemon{})
	none.run("vm", "ports", "alpha", "-o", "json").want(t, 0, "[]\n", "")
	if r := none.run("vm", "ports"); r.status != 2 {
		t.Errorf("no VM: status %d", r.status)
	}
}
