// Package hypervisor is the contract between banger and a VMM (virtual machine monitor: QEMU, Firecracker). It defines
// what a backend can be asked, in plain values; the backends are subpackages, and package hypervisortest holds the
// conformance suite that each of them passes.
//
// It owns one VMM process from its start to its end. It does not know images, networks or guests: it is given files
// and connected descriptors, and gives back the two byte streams of the guest (console and link).
package hypervisor

import (
	"context"
	"net"
	"os"
	"time"
)

// Machine is everything that a VMM needs to boot one microVM.
type Machine struct {
	ID        string // the VM's id; names the process for people who look at ps
	Name      string
	VCPUs     int
	Memory    int64  // bytes, a multiple of 1 MiB
	Kernel    string // path of a bzImage or vmlinux
	Initramfs string // path of a newc cpio archive, possibly compressed
	Cmdline   string // kernel command line of the caller; the backend adds what its devices need
	Disks     []Disk
	NIC       *NIC   // nil: no network device
	Dir       string // existing private directory (0700) for the VMM's own files and sockets
	// FixedMemory leaves out what takes memory from the guest while it runs: the VMM is no MemorySizer. Then any number of
	// VMs that are restored from one snapshot share its memory; else each has a copy of its own.
	FixedMemory bool
}

// Disk is one raw disk image. The guest finds it by its serial (/sys/block/*/serial), never by its position.
type Disk struct {
	Serial   string // 1-20 characters of a-z, 0-9 and -
	Path     string
	ReadOnly bool
	// Durable sends the guest's flushes on to the host's disk, so that they survive a power cut. Without it they end in
	// the host's page cache: they survive the death of every process, and cost nothing.
	Durable bool
}

// NIC is a network device whose frames travel over a connected stream socket, each preceded by its length as a 32-bit
// big-endian number (QEMU's stream netdev). The backend takes over the file and closes it.
type NIC struct {
	MAC  string // aa:bb:cc:dd:ee:ff
	Conn *os.File
}

// Backend makes VMMs of one kind.
type Backend interface {
	// Name is "qemu", "firecracker" or "fake".
	Name() string
	// Capabilities says what VMMs of this backend can do on this host.
	Capabilities() Capabilities
	// Boot starts a VMM and its vCPUs. It returns when the VMM is running (not when the guest is ready). The context
	// bounds the call only, not the life of the VMM. On error nothing is left behind: fault.Invalid for a machine that
	// makes no sense, fault.NotFound for a kernel, initramfs or disk that is not there. The VMM dies with the calling
	// process, however that ends.
	Boot(ctx context.Context, m Machine) (VMM, error)
}

// VMM is a running virtual machine monitor process and the VM in it. Its methods may be called concurrently. After Done
// is closed every method that acts fails with fault.Precondition.
type VMM interface {
	// Pid is the VMM's process id on the host.
	Pid() int
	// Link is the byte stream to the agent in the guest (virtio-serial port "banger.link", or vsock). It is connected
	// from the start; bytes written before the guest listens wait. After the VMM's end it yields what was sent last and then
	// fails (io.EOF, or ECONNRESET if something written was never read); the caller closes it.
	Link() net.Conn
	// Console is the guest's serial console: read its output, write its input. Somebody must read it all the time, for a
	// full buffer stops the guest. It ends like Link, so that a kernel's last words can still be read.
	Console() net.Conn
	// Pause stops the vCPUs; Resume lets them go on. Both are idempotent.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Status asks the VMM in what state the VM is.
	Status(ctx context.Context) (Status, error)
	// Kill ends the VMM process and waits until it is gone. Idempotent.
	Kill()
	// Done is closed when the VMM process has ended and has been waited for; Exit then says how.
	Done() <-chan struct{}
	Exit() Exit
}

// DiskGrower is what a VMM also is if its backend's Capabilities say GrowDisk.
type DiskGrower interface {
	// GrowDisk makes a writable disk of the running or paused VM larger; size is in bytes, a multiple of 512. The file grows
	// (sparsely) and the guest's device with it, though the guest may see that a moment later. What is on the disk stays
	// as it is. A size that the disk already has is no error; fault.Invalid: a smaller one, a disk that may not be
	// written, or an odd size; fault.NotFound: no disk has this serial.
	GrowDisk(ctx context.Context, serial string, size int64) error
}

// MemorySizer is what a VMM also is if its backend's Capabilities say SizeMemory: it takes memory from the guest and
// gives it back, up to what the machine was booted with.
type MemorySizer interface {
	// SetMemory tells the guest to make do with a size in bytes, a multiple of 1 MiB, and returns at once: the guest follows
	// by itself, as far as it can and wants to, and a paused one when it goes on. The machine's own size gives it all back.
	// fault.Unsupported: the machine's memory is fixed.
	// What the guest has given up goes back to the host. fault.Invalid: a size that is not above 0, is odd, or more than
	// the machine's.
	SetMemory(ctx context.Context, size int64) error
	// Memory says how many bytes the guest has at present.
	Memory(ctx context.Context) (int64, error)
}

// Snapshot is what there is of a VM that was paused, but for its disks: these must be, byte for byte, what they were at
// that moment, for the guest believes so.
type Snapshot struct {
	Memory string // path of the guest's memory: Machine.Memory bytes, holes for zeros
	State  string // path of the state of CPUs and devices, in a format of the VMM's own
}

// Saver is what a VMM also is if its backend's Capabilities say Snapshot.
type Saver interface {
	// Save makes a snapshot of a running or paused VM in the files s.Memory and s.State, which it makes. The vCPUs stand
	// still for a moment, in which Save calls still: for what must be of the same moment as the memory, the disks. Then
	// the VM is again what it was, running or paused, and Save goes on until the snapshot is whole. On error, that of still
	// included, neither file is left and the VM goes on as well.
	Save(ctx context.Context, s Snapshot, still func() error) (Saved, error)
}

// Saved says how a snapshot was made.
type Saved struct {
	Paused time.Duration // how long the vCPUs stood still
	Live   bool          // the memory was written while the VM went on
}

// Restorer is what a Backend also is if its Capabilities say Snapshot.
type Restorer interface {
	// Restore starts a VMM with the VM of a snapshot, paused. The machine must be as it was, but for the paths of its disks,
	// its NIC's connection and its directory. The guest's memory is the snapshot's, copied page by page as the guest writes:
	// the snapshot stays as it is and serves any number of VMs, and its files may go once Restore has returned. What the VMM
	// refuses, for it was made by another version or for another machine, is fault.Corrupt; all else is as in Boot.
	Restore(ctx context.Context, m Machine, s Snapshot) (VMM, error)
}

// Status is the state of the vCPUs.
type Status string

// The states a live VMM can report.
const (
	Running Status = "running"
	Paused  Status = "paused"
	Stopped Status = "stopped" // the guest shut down; the process is about to end
)

// Cause says why a VMM ended.
type Cause string

// The causes.
const (
	GuestShutdown Cause = "guest-shutdown" // the guest powered off
	GuestReset    Cause = "guest-reset"    // the guest rebooted or its kernel panicked; VMMs run with reboot = exit
	Killed        Cause = "killed"         // Kill was called
	Crashed       Cause = "crashed"        // anything else; before the guest has answered, booting again may help
)

// Exit says how a VMM ended.
type Exit struct {
	Cause  Cause
	Detail string // for people: exit status or signal, and the last lines of the VMM's stderr
	At     time.Time
}

// Capabilities is what a backend can do here, as data.
type Capabilities struct {
	Accelerator string // "kvm", "tcg", "none"
	Version     string // of the VMM, as it reports it
	Pause       bool
	Snapshot    bool // a VMM is a Saver and the backend a Restorer
	Vsock       bool
	GrowDisk    bool // a VMM is a DiskGrower
	SizeMemory  bool // a VMM is a MemorySizer
	MaxVCPUs    int
}
