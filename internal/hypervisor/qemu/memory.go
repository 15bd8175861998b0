package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// ram is the guest's memory as it lies in QEMU's process, which is a child of this one: so its pages can be read without
// any privilege, and the kernel says which of them QEMU has of its own (Documentation/admin-guide/mm/pagemap.rst).
type ram struct {
	pid     int
	address uint64 // of the first byte in QEMU's process
	size    int64  // bytes
	pagemap *os.File
}

// Bits of an entry of a pagemap.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // or shared
)

// pageSize is in bytes. Entries of a pagemap are 8 bytes, one a page.
const (
	pageSize  = 4096
	entrySize = 8
	scanned   = 32 << 10 // pages that are looked at in one go
	copied    = 256      // pages that are copied in one go
)

// hostAddress is what QEMU answers to "gpa2hva 0".
var hostAddress = regexp.MustCompile(`^Host virtual address for 0x0 \([^)]*\) is 0x([0-9a-f]{1,16})\s*$`)

// openRAM finds the guest's memory.
func (v *vmm) openRAM(ctx context.Context) (*ram, error) {
	var answer string
	err := v.execute(ctx, "find the memory of", "human-monitor-command", struct {
		Line string `json:"command-line"`
	}{"gpa2hva 0"}, &answer)
	if err != nil {
		return nil, err
	}
	found := hostAddress.FindStringSubmatch(answer)
	if found == nil {
		return nil, fault.New(fault.Unsupported, "QEMU does not tell where the guest's memory is: %.200q", answer)
	}
	address, err := strconv.ParseUint(found[1], 16, 64)
	if err != nil || address%pageSize != 0 {
		return nil, fault.New(fault.Corrupt, "QEMU says that the guest's memory is at %s", found[1])
	}
	pagemap, err := os.Open("/proc/" + strconv.Itoa(v.Pid()) + "/pagemap")
	if err != nil {
		return nil, fault.New(fault.Unsupported, "look at the guest's memory: %w", err)
	}
	return &ram{pid: v.Pid(), address: address, size: v.machine.Memory, pagemap: pagemap}, nil
}

func (r *ram) close() { _ = r.pagemap.Close() }

// copyTo writes the pages that QEMU has of its own to where they belong in a file: those that the guest has written. In
// the rest the file must be as the guest's memory already; sparse says that this is zeros.
func (r *ram) copyTo(ctx context.Context, file *os.File, sparse bool) error {
	w := &pageWriter{ram: r, file: file, sparse: sparse, buffer: make([]byte, copied*pageSize)}
	entries := make([]byte, scanned*entrySize)
	for first := int64(0); first < r.size/pageSize; first += scanned {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n := min(scanned, r.size/pageSize-first)
		if _, err := r.pagemap.ReadAt(entries[:n*entrySize], (int64(r.address/pageSize)+first)*entrySize); err != nil { // addresses of user space are below 2^47
			return fmt.Errorf("look at the guest's memory: %w", err)
		}
		for i := range n {
			entry := binary.NativeEndian.Uint64(entries[i*entrySize:])
			if entry&(pagePresent|pageSwapped) == 0 || entry&pageOfFile != 0 {
				continue
			}
			if err := w.add(first + i); err != nil {
				return err
			}
		}
	}
	return w.flush()
}

// pageWriter copies runs of pages from a guest's memory to a file.
type pageWriter struct {
	ram    *ram
	file   *os.File
	sparse bool // there are only zeros in the file
	buffer []byte
	first  int64 // page
	n      int64 // pages
}

func (w *pageWriter) add(page int64) error {
	if w.n > 0 && page == w.first+w.n && w.n < copied {
		w.n++
		return nil
	}
	err := w.flush()
	w.first, w.n = page, 1
	return err
}

func (w *pageWriter) flush() error {
	if w.n == 0 {
		return nil
	}
	data := w.buffer[:w.n*pageSize]
	at := w.first * pageSize
	local := []unix.Iovec{{Base: &data[0], Len: uint64(len(data))}}
	remote := []unix.RemoteIovec{{Base: uintptr(w.ram.address) + uintptr(at), Len: len(data)}}
	n, err := unix.ProcessVMReadv(w.ram.pid, local, remote, 0)
	switch {
	case err == unix.EPERM:
		return fault.New(fault.Unsupported, "read the guest's memory: %w", err).
			WithHint("this host lets no process read another's memory, not even its child's (kernel.yama.ptrace_scope)")
	case err != nil:
		return os.NewSyscallError("process_vm_readv", err)
	case n != len(data):
		return fault.New(fault.Corrupt, "read the guest's memory: %d bytes of %d", n, len(data))
	}
	w.n = 0
	return w.write(data, at)
}

// write writes pages. Zeros stay holes in a file that has nothing else yet.
func (w *pageWriter) write(data []byte, at int64) error {
	for len(data) > 0 {
		n := 0
		for w.sparse && n < len(data) && isZero(data[n:n+pageSize]) {
			n += pageSize
		}
		data, at = data[n:], at+int64(n)
		n = 0
		for n < len(data) && !(w.sparse && isZero(data[n:n+pageSize])) {
			n += pageSize
		}
		if n == 0 {
			continue
		}
		if _, err := w.file.WriteAt(data[:n], at); err != nil {
			return err
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

func isZero(page []byte) bool { return bytes.Equal(page, zeros[:]) }

var zeros [pageSize]byte //nolint:gochecknoglobals // a constant
