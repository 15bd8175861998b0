package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"banger/internal/hypervisor"
)

// linkPort is the name of the virtio-serial port that the guest's agent looks for.
const linkPort = "banger.link"

// translationCache bounds what TCG keeps of translated code, in MiB. QEMU's own default is up to 1 GiB per VM. At 256 no
// boot is slower than by default; at 16 one takes a quarter longer.
const translationCache = 256

// balloonDevice takes memory from the guest and gives it back. By free page reporting the guest says by itself which pages
// it has freed, and QEMU gives them back to the host. Not where several VMs map one file: QEMU 7.2 punches holes into the
// file, which would take the pages from all of them (ram_block_discard_range).
const balloonDevice = "virtio-balloon-device,id=balloon,free-page-reporting=on"

// descriptors are the numbers of the descriptors that QEMU inherits.
type descriptors struct {
	qmp, console, link int
	nic                int // 0: none
	disks              []int
	memory             int // 0: the guest's memory comes from no file
}

// arguments returns QEMU's command line for a machine that boots, without the program's name. Nothing in it opens a file
// but the kernel and the initramfs; sockets and disks are inherited, so that QEMU leaves nothing behind in the file system.
func arguments(h Host, m hypervisor.Machine, fds descriptors) []string {
	return append(board(h, m, fds), "-kernel", m.Kernel, "-initrd", m.Initramfs, "-append", Cmdline(h, m.Cmdline))
}

// restoreArguments returns the command line for a machine that waits for its state.
func restoreArguments(h Host, m hypervisor.Machine, fds descriptors) []string {
	return append(board(h, m, fds), "-S", "-incoming", "defer")
}

// board returns the part of the command line that makes the devices. A file that the memory comes from is mapped privately:
// it stays as it is.
func board(h Host, m hypervisor.Machine, fds descriptors) []string {
	args := []string{
		"-name", "guest=" + escape("banger-"+m.ID+"-"+m.Name),
		// Interrupt controller and timer of the PC are left out: the APIC does all. The clock chip stays: without it a
		// boot takes 2.5 s longer. Devices are found through ACPI.
		"-machine", "microvm,acpi=on,pit=off,pic=off,rtc=on,pcie=off,usb=off,mem-merge=off,dump-guest-core=off",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", // a reset ends QEMU
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-m", strconv.FormatInt(m.Memory>>20, 10) + "M",
		"-smp", strconv.Itoa(m.VCPUs),
	}
	if fds.memory != 0 {
		args = append(args, "-machine", "memory-backend=memory", "-object", fmt.Sprintf(
			"memory-backend-file,id=memory,size=%dM,mem-path=/proc/self/fd/%d,share=off", m.Memory>>20, fds.memory))
	}
	if !m.FixedMemory {
		args = append(args, "-device", balloonDevice)
	}
	args = append(args, processor(h)...)
	args = append(args,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fds.qmp), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fds.console), "-serial", "chardev:console",
		"-device", "virtio-serial-device,max_ports=2",
		"-chardev", fmt.Sprintf("socket,id=link,fd=%d", fds.link),
		"-device", "virtserialport,chardev=link,name="+linkPort,
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng",
		"-device", "vmgenid,guid=auto",
	)
	for i, d := range m.Disks {
		args = append(args, disk(i, d, fds.disks[i])...)
	}
	if m.NIC != nil {
		args = append(args,
			"-netdev", fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", fds.nic),
			"-device", "virtio-net-device,netdev=net,mac="+m.NIC.MAC)
	}
	return args
}

// processor returns the accelerator and the CPU model. Both models stay the same for one version of QEMU on one host.
func processor(h Host) []string {
	if h.Accelerator == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationCache), "-cpu", "max"}
}

// disk returns the arguments for one disk. QEMU keeps no written data to itself: what the guest was told is written is
// in the host's page cache at least. With no-flush a flush of the guest ends there.
func disk(i int, d hypervisor.Disk, fd int) []string {
	args := []string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, i),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,discard=unmap,cache.direct=off,cache.no-flush=%s,"+
			"file.driver=file,file.filename=/dev/fdset/%d,file.aio=threads", diskNode(i), onOff(d.ReadOnly), onOff(!d.Durable), i),
	}
	device := fmt.Sprintf("virtio-blk-device,drive=%s,serial=%s", diskNode(i), d.Serial)
	if !d.ReadOnly {
		// The default for ENOSPC is to stop the VM, for which nobody waits.
		device += ",werror=report,rerror=report"
	}
	return append(args, "-device", device)
}

// diskNode is QEMU's name for the block device of a disk.
func diskNode(i int) string { return "disk" + strconv.Itoa(i) }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// escape makes a text safe as a value in one of QEMU's comma-separated options.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// Cmdline returns the whole kernel command line for a caller's part of it.
func Cmdline(h Host, callers string) string {
	// A panic resets at once, and a reset is a triple fault, which works whatever state the guest is in: -no-reboot makes
	// both an end of QEMU. Warnings, but nothing less, go to the console. The self-tests of ciphers cost 0.3 s under TCG.
	own := "console=ttyS0 quiet loglevel=5 panic=-1 reboot=t cryptomgr.notests"
	if h.Accelerator == TCG && h.TSCKHz > 0 {
		// Under TCG the guest's TSC runs at the rate of the host's. On a busy host the kernel fails to measure that rate,
		// and later takes the TSC to be wrong because timer interrupts come late; either way it falls back to a clock that
		// hardly ticks.
		own += fmt.Sprintf(" tsc_early_khz=%d tsc=reliable", h.TSCKHz)
	}
	return strings.TrimSpace(own + " " + callers)
}
