package qemu

import (
	"context"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

var _ hypervisor.MemorySizer = (*vmm)(nil)

// SetMemory implements [hypervisor.MemorySizer]: QEMU tells the guest's balloon driver how large to be.
func (v *vmm) SetMemory(ctx context.Context, size int64) error {
	if err := v.machine.CheckMemory(size); err != nil {
		return err
	}
	if v.machine.FixedMemory {
		return fault.New(fault.Unsupported, "set the memory of the VM: it is fixed").
			WithHint("give the size when the VM is made")
	}
	return v.execute(ctx, "set the memory of", "balloon", struct {
		Value int64 `json:"value"`
	}{size}, nil)
}

// Memory implements [hypervisor.MemorySizer].
func (v *vmm) Memory(ctx context.Context) (int64, error) {
	if v.machine.FixedMemory {
		return v.machine.Memory, nil
	}
	var answer struct {
		Actual int64 `json:"actual"`
	}
	err := v.execute(ctx, "ask for the memory of", "query-balloon", nil, &answer)
	return answer.Actual, err
}
