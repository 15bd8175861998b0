// Package monitor is the process that stands beside one VM for as long as it runs. It is the parent of the VMM and owns
// what must live exactly as long: the VMM itself, the user-mode network, the console log, the link to the agent, samples
// of use (an hour of them). It outlives the daemon, holds no policy and writes no database: it does what its launch
// record says, tells its status to whoever watches, and leaves a last word (exit.json) in the VM's directory.
//
// Goroutines: Run owns all of them and returns when the VMM is gone and they have ended. Shutdown order: VMM, network
// and console (they end with their descriptors), exit record, watchers (who see Ended and then the end of the stream),
// socket.
//
// Locks: board.mu guards the status, console.mu the log, samples.mu the samples; none is held while another is taken, nor
// over a read or write that a peer could block. The console's file is written under its lock: it is a local file.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/backends"
	"banger/internal/guestlink"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
	"banger/internal/usernet"
)

// Monitor watches over one VM.
type Monitor struct {
	dirs     monitorlink.Dirs
	launch   monitorlink.Launch
	listener *net.UnixListener
	log      *slog.Logger

	board   *board
	console *console
	link    *link
	samples *samples
	saver   *saver

	began    atomic.Pointer[time.Time] // when the VM was started; set by session, and by claim
	attached atomic.Int32              // streams to the guest and consoles that are open

	taken   atomic.Bool // somebody claims the spare that this is, or has
	claimed chan *ports // capacity 1: the published ports of one that was claimed
}

// New returns the monitor of the VM whose directories are given. It does nothing yet.
func New(dirs monitorlink.Dirs, launch monitorlink.Launch, ln *net.UnixListener, log *slog.Logger) *Monitor {
	b := newBoard(monitorlink.Status{
		Phase: monitorlink.Booting, MonitorPid: os.Getpid(), Settings: launch.Settings(), Parked: launch.Restore != nil && launch.Restore.Parked,
	})
	return &Monitor{
		dirs: dirs, launch: launch, listener: ln, log: log,
		board:   b,
		console: newConsole(dirs.ConsoleLog()),
		link:    newLink(launch.Restore),
		samples: newSamples(),
		claimed: make(chan *ports, 1),
		saver:   &saver{id: launch.ID, disks: launch.Machine.Disks, board: b, log: log},
	}
}

// Run boots the VM and stays until it has ended, or until the context ends, which kills it.
func (m *Monitor) Run(ctx context.Context) error {
	if err := m.dirs.Identify(); err != nil {
		return err
	}
	defer m.listener.Close() //nolint:errcheck // nothing to flush
	var exit monitorlink.Exit
	ports, err := openPorts(m.launch.Publish, m.link, m.board, m.log)
	if err != nil {
		exit = failed(m.launch.Restore, err)
	} else {
		exit = m.session(ctx, ports)
		ports.close()
	}
	err = m.dirs.WriteExit(exit)
	if err != nil {
		m.log.Error("leave exit record", "err", err)
	}
	m.board.update(func(s *monitorlink.Status) {
		s.Phase, s.Exit, s.Reachable, s.Paused = monitorlink.Ended, &exit, false, false
	})
	m.board.finish()
	return err
}

// session is the life of the VMM.
func (m *Monitor) session(ctx context.Context, ports *ports) monitorlink.Exit {
	began := time.Now()
	m.began.Store(&began)
	m.enterGroup()
	if m.launch.Nice != 0 {
		_ = unix.Setpriority(unix.PRIO_PGRP, 0, m.launch.Nice) // all threads; the monitor leads a group of its own
	}
	vmm, network, err := m.boot(ctx)
	if err != nil {
		return failed(m.launch.Restore, err)
	}
	defer vmm.Kill()
	m.board.update(func(s *monitorlink.Status) {
		s.VMMPid = vmm.Pid()
		s.Stages = append(s.Stages, monitorlink.Stage{Name: "vmm", Elapsed: time.Since(began)})
	})
	m.log.Info("VMM started", "vm", m.launch.ID, "pid", vmm.Pid(), "dur", time.Since(began))

	ctx, cancel := context.WithCancel(ctx)
	defer vmm.Link().Close()    //nolint:errcheck // nothing to flush
	defer vmm.Console().Close() //nolint:errcheck // nothing to flush
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		m.console.settle()
		_ = vmm.Console().Close() // it does not end by itself if someone else holds the other end
	}()
	defer cancel()
	if network != nil {
		wg.Go(func() { m.runNetwork(ctx, network) })
	}
	wg.Go(func() { m.console.pump(vmm.Console()) })
	wg.Go(func() { m.serve(ctx, vmm) })
	wg.Go(func() { m.sample(ctx, vmm.Pid(), network) })
	wg.Go(func() { m.askGuest(ctx) })
	expired := make(chan monitorlink.Cause, 1)
	wg.Go(func() { m.expire(ctx, vmm, expired) })
	ready := make(chan guestReady, 1)
	wg.Go(func() { m.link.keep(ctx, vmm.Link(), m.board, ready, m.log) })

	deadline := time.NewTimer(m.launch.BootTimeout - time.Since(began))
	defer deadline.Stop()
	for {
		select {
		case hello := <-ready:
			deadline.Stop()
			if hello.err != nil {
				vmm.Kill()
				m.console.settle()
				exit := failed(m.launch.Restore, hello.err)
				exit.ConsoleTail = m.console.tail()
				return exit
			}
			m.board.update(func(s *monitorlink.Status) {
				s.Phase, s.Reachable = monitorlink.Ready, true
				s.BootID, s.KernelRelease, s.AgentVersion = hello.bootID, hello.release, hello.agent
				s.Stages = append(s.Stages, monitorlink.Stage{Name: "guest", Elapsed: hello.at.Sub(began) - s.Stages[0].Elapsed})
			})
			wg.Go(func() { ports.carry(ctx, network) })
			m.log.Info("guest ready", "vm", m.launch.ID, "dur", hello.at.Sub(began))
		case claimed := <-m.claimed:
			wg.Go(func() { claimed.carry(ctx, network) })
		case <-deadline.C:
			vmm.Kill()
			m.console.settle()
			return silent(m.launch.BootTimeout, m.console.tail())
		case <-ctx.Done():
			vmm.Kill()
			return m.exitOf(vmm)
		case <-vmm.Done():
			exit := m.exitOf(vmm)
			select {
			case exit.Cause = <-expired:
			default:
			}
			return exit
		}
	}
}

// silent is the end of a VM whose agent has not answered.
func silent(within time.Duration, console string) monitorlink.Exit {
	return monitorlink.Exit{
		Cause:       monitorlink.BootTimeout,
		Detail:      fmt.Sprintf("the agent in the guest did not answer within %s", within),
		ConsoleTail: console, At: time.Now(),
	}
}

// exitOf words the VMM's end.
func (m *Monitor) exitOf(vmm hypervisor.VMM) monitorlink.Exit {
	e := vmm.Exit()
	exit := monitorlink.Exit{Cause: monitorlink.Cause(e.Cause), Detail: e.Detail, At: e.At}
	if e.Cause == hypervisor.Crashed || e.Cause == hypervisor.GuestReset || m.board.get().Phase == monitorlink.Booting {
		m.console.settle()
		exit.ConsoleTail = m.console.tail()
	}
	m.log.Info("VMM ended", "vm", m.launch.ID, "cause", e.Cause, "detail", e.Detail)
	return exit
}

// network is the host side of the VM's network device.
type network struct {
	net  *usernet.Network
	conn net.Conn
}

// boot makes the network and starts the VMM.
func (m *Monitor) boot(ctx context.Context) (hypervisor.VMM, *network, error) {
	ctx, cancel := context.WithTimeout(ctx, m.launch.BootTimeout)
	defer cancel()
	backend, err := backends.Make(m.launch.Backend, m.launch.Host)
	if err != nil {
		return nil, nil, err
	}
	machine := m.launch.Machine
	var n *network
	if m.launch.Network != nil {
		if n, machine.NIC, err = m.makeNetwork(); err != nil {
			return nil, nil, err
		}
	}
	vmm, err := startVMM(ctx, backend, machine, m.launch.Restore)
	if err != nil {
		if n != nil {
			_ = n.conn.Close()
		}
		return nil, nil, err
	}
	return vmm, n, nil
}

// guestMAC is the same in every VM: each has a network of its own, and copies of a VM need not change theirs.
const guestMAC = "52:54:00:62:6e:67"

// makeNetwork makes the user-mode network and the two ends of the wire.
func (m *Monitor) makeNetwork() (*network, *hypervisor.NIC, error) {
	l := m.launch.Network
	n, err := usernet.New(usernet.Config{
		Guest: l.Guest, Gateway: l.Gateway, MTU: l.MTU, Policy: usernet.Policy{Allow: l.Allow}, Log: m.log,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make user-mode network: %w", err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make network wire: %w", err)
	}
	guest, host := os.NewFile(uintptr(fds[0]), "nic"), os.NewFile(uintptr(fds[1]), "wire")
	conn, err := net.FileConn(host)
	_ = host.Close()
	if err != nil {
		_ = guest.Close()
		return nil, nil, fmt.Errorf("make network wire: %w", err)
	}
	return &network{net: n, conn: conn}, &hypervisor.NIC{MAC: guestMAC, Conn: guest}, nil
}

func (m *Monitor) runNetwork(ctx context.Context, n *network) {
	defer n.conn.Close() //nolint:errcheck // nothing to flush
	if err := n.net.Run(ctx, n.conn); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		m.log.Error("user-mode network", "vm", m.launch.ID, "err", err)
	}
}

var _ guestlink.Opener = (*link)(nil)
