//go:build fakevmm

package backends

import (
	"context"
	"encoding/json"
	"os"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
)

// fakeGuestVariable names, in the environment, the guest agent that a fake VM runs as a process of the host.
const fakeGuestVariable = "BANGER_FAKE_GUEST"

// extra adds the fake backend to a test build: everything but the VM is real.
func extra() []Backend { return []Backend{{Name: "fake", Detect: detectFake, Make: makeFake}} }

func detectFake(context.Context) (Found, error) {
	guest := os.Getenv(fakeGuestVariable)
	if guest == "" {
		return Found{}, fault.New(fault.Unsupported, "%s is not set", fakeGuestVariable)
	}
	raw, err := json.Marshal(guest)
	return Found{Accelerator: "none", Version: "0", Program: guest, Reason: "asked for by name", Host: raw}, err
}

func makeFake(host json.RawMessage) (hypervisor.Backend, error) {
	var guest string
	if err := json.Unmarshal(host, &guest); err != nil {
		return nil, err
	}
	return fakevmm.New([]string{guest, "-hosted", "-link-fd", "3"}, fakevmm.Faults{}), nil
}
