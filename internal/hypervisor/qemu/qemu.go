// Package qemu runs microVMs in QEMU (7.2 or later, machine "microvm"), on KVM where that works and in software (TCG)
// elsewhere. It owns QEMU's command line, the QEMU process and the QMP connection to it. It does not own disks, the
// network or what the guest says.
//
// Descriptors. Everything that connects QEMU to its parent is a socket pair that QEMU inherits, and disks are opened here
// and inherited too: QEMU leaves no file, no socket and no lock behind, however it ends.
//
// Goroutines. A VMM has two of its own: one reads QMP until the connection ends, the other waits for the process and then
// closes Done. Both end with the process. (Package hostexec holds a third, with the thread that the parent-death signal
// hangs on.)
//
// Locks. client.mu guards the table of waiting commands, vmm.mu why the process is being killed, watchedConsole.mu the
// end of what was read. None is held over I/O, and none is taken while another is held.
//
// Busy hosts. Under TCG a kernel that boots while the host stalls may lose its only timer, and hangs. The console is
// watched for that: such a VMM ends at once, as crashed, and its machine is to be booted again.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
)

// Backend boots machines on one host. It holds no state.
type Backend struct{ host Host }

var _ hypervisor.Backend = (*Backend)(nil)

// New returns a backend for a host that [Detect] has looked at.
func New(h Host) *Backend { return &Backend{host: h} }

// Name is "qemu".
func (b *Backend) Name() string { return "qemu" }

// Capabilities says what QEMU can do on this host.
func (b *Backend) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{
		Accelerator: string(b.host.Accelerator),
		Version:     b.host.Version,
		Pause:       true,
		Snapshot:    true,
		GrowDisk:    true,
		SizeMemory:  true,
		MaxVCPUs:    microvm.MaxVCPUs,
	}
}

// Boot starts QEMU and returns when it answers QMP and its vCPUs run.
func (b *Backend) Boot(ctx context.Context, m hypervisor.Machine) (hypervisor.VMM, error) {
	v, err := b.launch(ctx, m, process{arguments: arguments})
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", m.ID, err)
	}
	return v, nil
}

// process is what distinguishes one start of QEMU from another, besides its machine.
type process struct {
	arguments func(Host, hypervisor.Machine, descriptors) []string
	memory    *os.File // what the guest's memory is at first; nil: zeros
}

// launch starts QEMU and returns when it answers QMP. It closes the machine's end of the network.
func (b *Backend) launch(ctx context.Context, m hypervisor.Machine, p process) (*vmm, error) {
	defer closeNIC(m) // QEMU has its own copy by then
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.check(m); err != nil {
		return nil, err
	}
	disks, err := m.OpenFiles()
	if err != nil {
		return nil, err
	}
	defer closeAll(disks)
	v, err := b.start(m, p, disks)
	if err != nil {
		return nil, err
	}
	if err := v.qmp.negotiate(ctx); err != nil {
		return nil, v.abandon(err)
	}
	return v, nil
}

func closeNIC(m hypervisor.Machine) {
	if m.NIC != nil && m.NIC.Conn != nil {
		_ = m.NIC.Conn.Close()
	}
}

func (b *Backend) check(m hypervisor.Machine) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if m.VCPUs > microvm.MaxVCPUs {
		return fault.New(fault.Invalid, "bad machine %q: %d vCPUs", m.ID, m.VCPUs).WithHint("use at most %d", microvm.MaxVCPUs)
	}
	if n := len(Cmdline(b.host, m.Cmdline)); n > hypervisor.MaxCmdline {
		return fault.New(fault.Invalid, "bad machine %q: its kernel command line has %d bytes of at most %d", m.ID, n,
			hypervisor.MaxCmdline)
	}
	return nil
}

// start starts QEMU. All files are the caller's to close.
func (b *Backend) start(m hypervisor.Machine, p process, disks []*os.File) (_ *vmm, err error) {
	for _, path := range []*string{&m.Kernel, &m.Initramfs} {
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	var ours []net.Conn
	var inherited []*os.File
	var theirs []*os.File
	defer func() {
		closeAll(theirs)
		if err != nil {
			for _, c := range ours {
				_ = c.Close()
			}
		}
	}()
	for range 3 {
		conn, peer, err := socketPair()
		if err != nil {
			return nil, err
		}
		ours, theirs = append(ours, conn), append(theirs, peer)
	}
	const first = 3 // descriptor number of the first inherited file
	inherited = append(inherited, theirs...)
	inherit := func(f *os.File) int {
		if f == nil {
			return 0
		}
		inherited = append(inherited, f)
		return first + len(inherited) - 1
	}
	fds := descriptors{qmp: first, console: first + 1, link: first + 2, memory: inherit(p.memory)}
	if m.NIC != nil {
		fds.nic = inherit(m.NIC.Conn)
	}
	for _, d := range disks {
		fds.disks = append(fds.disks, inherit(d))
	}
	stderr := &tail{}
	proc, err := hostexec.Start(hostexec.Cmd{
		Path:   b.host.Binary,
		Args:   p.arguments(b.host, m, fds),
		Env:    []string{"PATH=/usr/bin:/bin"}, // QEMU runs what a hostile guest gives it: it gets no secrets
		Dir:    m.Dir,
		Stderr: stderr,
		Files:  inherited,
	})
	if err != nil {
		return nil, startFault(err)
	}
	v := newVMM(m, proc, stderr, ours[0], ours[1], ours[2])
	if v.base, err = duplicate(p.memory); err != nil {
		proc.Kill()
		return nil, err
	}
	go v.qmp.run()
	go v.reap()
	return v, nil
}

func startFault(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Unsupported, "%w", err).WithHint("%s", installHint)
	}
	return err
}

// socketPair returns a connection and the file of its other end, which a child may inherit.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	own, peer := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	defer own.Close() //nolint:errcheck // FileConn makes a copy
	conn, err := net.FileConn(own)
	if err != nil {
		_ = peer.Close()
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return conn, peer, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
