// Package backends is the table of hypervisor backends that this program has. The daemon asks what a backend can do on
// this host; the monitor makes the backend from the daemon's answer. It holds no state.
package backends

import (
	"context"
	"encoding/json"
	"fmt"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/qemu"
)

// Found is what a look at the host says of a backend.
type Found struct {
	Accelerator string          // "kvm", "tcg", "none"
	Version     string          // of the VMM
	Program     string          // path of the VMM
	Reason      string          // why this accelerator, in words
	Host        json.RawMessage // all of that in the backend's own words, for Make
}

// Backend is one entry of the table.
type Backend struct {
	Name string
	// Detect looks at the host. That the backend cannot work here is an error of kind fault.Unsupported which says what is
	// missing.
	Detect func(ctx context.Context) (Found, error)
	// Make makes the backend from what Detect found, in another process.
	Make func(host json.RawMessage) (hypervisor.Backend, error)
}

// All returns the table, in order of preference.
func All() []Backend {
	return append([]Backend{{Name: "qemu", Detect: detectQEMU, Make: makeQEMU}}, extra()...)
}

// Make makes the backend with a name.
func Make(name string, host json.RawMessage) (hypervisor.Backend, error) {
	for _, b := range All() {
		if b.Name == name {
			return b.Make(host)
		}
	}
	return nil, fault.New(fault.Unsupported, "this banger has no backend %q", name).
		WithHint("the VM was made by another version of banger; use that one")
}

func detectQEMU(ctx context.Context) (Found, error) {
	h, err := qemu.Detect(ctx, qemu.Config{})
	if err != nil {
		return Found{}, err
	}
	raw, err := json.Marshal(h)
	if err != nil {
		return Found{}, fmt.Errorf("encode what is known of QEMU: %w", err)
	}
	return Found{
		Accelerator: string(h.Accelerator), Version: h.Version, Program: h.Binary, Reason: h.Reason, Host: raw,
	}, nil
}

func makeQEMU(host json.RawMessage) (hypervisor.Backend, error) {
	var h qemu.Host
	if err := json.Unmarshal(host, &h); err != nil {
		return nil, fmt.Errorf("read what is known of QEMU: %w", err)
	}
	return qemu.New(h), nil
}
