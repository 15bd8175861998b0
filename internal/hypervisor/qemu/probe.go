package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/hostexec"
)

// probeTimeout bounds the run of the probe. A usable KVM needs about 0.1 s.
const probeTimeout = 2 * time.Second

// probeStatus is QEMU's exit status when the probe's guest has written 0x10 to the isa-debug-exit device: 2n+1.
const probeStatus = 0x10<<1 | 1

// runProbe runs the probe's guest under an accelerator and returns nil if it came to its end.
func runProbe(ctx context.Context, binary string, accel Accelerator) error {
	dir, err := os.MkdirTemp("", "banger-probe-")
	if err != nil {
		return fmt.Errorf("prepare the probe: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a stray kilobyte in the temporary directory
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, probeKernel(), 0o600); err != nil {
		return fmt.Errorf("prepare the probe: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	err = hostexec.Run(ctx, hostexec.Cmd{Path: binary, Args: []string{
		"-machine", "microvm,acpi=on,pit=off,pic=off", "-accel", string(accel), "-m", "32M", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", kernel,
	}})
	switch {
	case hostexec.ExitCode(err) == probeStatus:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("a test guest hung for %v", probeTimeout)
	case err == nil:
		return errors.New("a test guest stopped too early")
	default:
		return fmt.Errorf("a test guest failed: %w", err)
	}
}

const (
	probeBase  = 0x100000 // physical address of the probe's guest
	probeSize  = 0x5000   // bytes, with its page tables
	phys32Note = 18       // XEN_ELFNOTE_PHYS32_ENTRY: where a PVH kernel is entered (Xen's elfnote.h)
)

// probeCode goes from 32-bit protected mode, where PVH enters a kernel, to 64-bit mode with paging, executes an
// instruction that exists only there, and ends QEMU. Stock kernels do the same first. That it works is necessary, not
// sufficient: the module kvm_pvm runs it, and stock kernels hang later (see hasVirtualization).
func probeCode() []byte {
	return bytes.Join([][]byte{
		{0xc7, 0x05, 0x00, 0x20, 0x10, 0x00, 0x03, 0x30, 0x10, 0x00}, // movl $0x103003, 0x102000    page map level 4
		{0xc7, 0x05, 0x00, 0x30, 0x10, 0x00, 0x03, 0x40, 0x10, 0x00}, // movl $0x104003, 0x103000    directory pointers
		{0xc7, 0x05, 0x00, 0x40, 0x10, 0x00, 0x83, 0x00, 0x00, 0x00}, // movl $0x83, 0x104000        one 2 MiB page
		{0xb8, 0x00, 0x20, 0x10, 0x00},                               // movl $0x102000, %eax
		{0x0f, 0x22, 0xd8},                                           // movl %eax, %cr3
		{0x0f, 0x20, 0xe0},                                           // movl %cr4, %eax
		{0x83, 0xc8, 0x20},                                           // orl $0x20, %eax             PAE
		{0x0f, 0x22, 0xe0},                                           // movl %eax, %cr4
		{0xb9, 0x80, 0x00, 0x00, 0xc0},                               // movl $0xc0000080, %ecx      EFER
		{0x0f, 0x32},                                                 // rdmsr
		{0x0d, 0x00, 0x01, 0x00, 0x00},                               // orl $0x100, %eax            LME
		{0x0f, 0x30},                                                 // wrmsr
		{0x0f, 0x20, 0xc0},                                           // movl %cr0, %eax
		{0x0d, 0x00, 0x00, 0x00, 0x80},                               // orl $0x80000000, %eax       PG
		{0x0f, 0x22, 0xc0},                                           // movl %eax, %cr0
		{0x0f, 0x01, 0x15, 0x80, 0x00, 0x10, 0x00},                   // lgdt 0x100080
		{0xea, 0x56, 0x00, 0x10, 0x00, 0x08, 0x00},                   // ljmp $8, $0x100056
		{0x48, 0xb8, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12}, // movabs $0x123456789abcdef0, %rax
		{0x48, 0x0f, 0xc8},                                           // bswap %rax
		{0xb8, 0x10, 0x00, 0x00, 0x00},                               // movl $0x10, %eax
		{0x66, 0xba, 0xf4, 0x00},                                     // movw $0xf4, %dx
		{0xee},                                                       // outb %al, %dx
		{0xf4, 0xeb, 0xfd},                                           // hlt, again and again
		{0, 0, 0, 0, 0, 0, 0, 0},                                     // GDT at 0x100070: the null entry,
		{0xff, 0xff, 0, 0, 0, 0x9a, 0xaf, 0},                         // 64-bit code
		{0x0f, 0x00, 0x70, 0x00, 0x10, 0x00},                         // at 0x100080: the GDT's limit and address
	}, nil)
}

// probeKernel returns a PVH kernel: a 32-bit ELF file with the code and the note that names its entry (ELF
// specification, "ELF Header", "Program Header", "Note Section").
func probeKernel() []byte {
	const headerSize, segmentSize = 52, 32
	code := probeCode()
	note := binary.LittleEndian.AppendUint32(nil, 4)
	note = binary.LittleEndian.AppendUint32(note, 4)
	note = binary.LittleEndian.AppendUint32(note, phys32Note)
	note = append(note, "Xen\x00"...)
	note = binary.LittleEndian.AppendUint32(note, probeBase)
	noteAt := uint32(headerSize + 2*segmentSize)
	codeAt := noteAt + uint32(len(note)) // 20 bytes

	f := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	f = binary.LittleEndian.AppendUint16(f, 2) // an executable
	f = binary.LittleEndian.AppendUint16(f, 3) // for the 80386
	for _, v := range []uint32{1, probeBase, headerSize, 0, 0} {
		f = binary.LittleEndian.AppendUint32(f, v)
	}
	for _, v := range []uint16{headerSize, segmentSize, 2, 40, 0, 0} {
		f = binary.LittleEndian.AppendUint16(f, v)
	}
	size, noteSize := uint32(len(code)), uint32(len(note)) // both below 200
	for _, v := range []uint32{
		1, codeAt, probeBase, probeBase, size, probeSize, 7, 4, // loaded at probeBase; what follows the code is zero
		4, noteAt, 0, 0, noteSize, noteSize, 4, 4,
	} {
		f = binary.LittleEndian.AppendUint32(f, v)
	}
	return append(append(f, note...), code...)
}
