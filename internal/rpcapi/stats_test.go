//go:build fakevmm

package rpcapi_test

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

func TestStats(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	vm := b.create("a", true)
	newest := func() *bangerv1.StatsResponse {
		t.Helper()
		stream, err := b.api.VMs.Stats(t.Context(), connect.NewRequest(&bangerv1.StatsRequest{Vms: []string{"a"}}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close() //nolint:errcheck // Err tells
		var res *bangerv1.StatsResponse
		n := 0
		for ; stream.Receive(); n++ {
			res = stream.Msg()
		}
		if n != 1 || stream.Err() != nil {
			t.Fatalf("%d samples, %v", n, stream.Err())
		}
		return res
	}
	res := newest()
	// The kernel counts the pages of a process that has just started in batches, so that the first sample may say 0.
	for deadline := time.Now().Add(20 * time.Second); res.GetSample().GetVmmResident() == 0 && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		res = newest()
	}
	s := res.GetSample()
	if res.GetVmId() != vm.GetId() || res.GetName() != "a" || time.Since(s.GetAt().AsTime()) > time.Minute ||
		s.GetVmmResident() == 0 || s.GetGuestCpu().AsDuration() <= 0 || s.GetGuestMemoryTotal() < s.GetGuestMemory() || s.GetProcesses() == 0 {
		t.Errorf("%+v", res)
	}
	b.create("still", false)
	stream, err := b.api.VMs.Stats(t.Context(), connect.NewRequest(&bangerv1.StatsRequest{Vms: []string{"still"}}))
	if err == nil {
		defer stream.Close() //nolint:errcheck // Err tells
		if stream.Receive() {
			t.Errorf("of a VM that does not run: %+v", stream.Msg())
		}
		err = stream.Err()
	}
	if !fault.Is(err, fault.Precondition) || fault.HintOf(err) == "" {
		t.Errorf("of a VM that does not run: %v", err)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // the fake guest is on this machine
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's end
	res, err := b.api.VMs.Ports(t.Context(), connect.NewRequest(&bangerv1.PortsRequest{Vm: "a"}))
	if err != nil {
		t.Fatal(err)
	}
	if port := netip.MustParseAddrPort(l.Addr().String()).Port(); !slices.ContainsFunc(res.Msg.GetPorts(), func(p *bangerv1.Port) bool {
		return p.GetProtocol() == "tcp" && p.GetAddress() == "127.0.0.1" && p.GetPort() == uint32(port) && p.GetHostAddress() == ""
	}) {
		t.Errorf("port %d is not there: %v", port, res.Msg.GetPorts())
	}
	if _, err := b.api.VMs.Ports(t.Context(), connect.NewRequest(&bangerv1.PortsRequest{Vm: "nosuch"})); !fault.Is(err, fault.NotFound) {
		t.Errorf("of no VM: %v", err)
	}
}
