package qemu

import (
	"context"

	"banger/internal/hypervisor"
)

var _ hypervisor.MemorySizer = (*vmm)(nil)

// SetMemory implements [hypervisor.MemorySizer]: QEMU tells the guest's balloon driver how large to be.
func (v *vmm) SetMemory(ctx context.Context, size int64) error {
	if err := v.machine.CheckMemory(size); err != nil {
		return err
	}
	return v.execute(ctx, "set the memory of", "balloon", struct {
		Value int64 `json:"value"`
	}{size}, nil)
}

// Memory implements [hypervisor.MemorySizer].
func (v *vmm) Memory(ctx context.Context) (int64, error) {
	var answer struct {
		Actual int64 `json:"actual"`
	}
	err := v.execute(ctx, "ask for the memory of", "query-balloon", nil, &answer)
	return answer.Actual, err
}
