package fakevmm

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"banger/internal/hypervisor"
)

// balloon is the memory of a guest that has none of its own: a number in a file, which the guest can read. mu is held
// while the file, which is in the VMM's own directory, is written.
type balloon struct {
	machine hypervisor.Machine

	mu   sync.Mutex
	size int64 // bytes; 0 before the first set
	gone bool  // the guest has ended
}

func balloonFile(m hypervisor.Machine) string { return filepath.Join(m.Dir, "memory") }

func (b *balloon) set(size int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return nil
	}
	b.size = size
	return os.WriteFile(balloonFile(b.machine), []byte(strconv.FormatInt(size, 10)), 0o600)
}

// remove removes the file, for the VMM leaves nothing behind.
func (b *balloon) remove() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	_ = os.Remove(balloonFile(b.machine))
}

func (b *balloon) get() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size
}

var _ hypervisor.MemorySizer = (*vmm)(nil)

// SetMemory implements [hypervisor.MemorySizer].
func (v *vmm) SetMemory(ctx context.Context, size int64) error {
	if err := v.alive(ctx, "set the memory of"); err != nil {
		return err
	}
	if err := v.machine.CheckMemory(size); err != nil {
		return err
	}
	return v.balloon.set(size)
}

// Memory implements [hypervisor.MemorySizer].
func (v *vmm) Memory(ctx context.Context) (int64, error) {
	if err := v.alive(ctx, "ask for the memory of"); err != nil {
		return 0, err
	}
	return v.balloon.get(), nil
}
