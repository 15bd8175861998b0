package guestproto

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
)

// Limits of what a guest may say of itself.
const (
	MaxPorts = 128 // ports of one answer; with them it stays below MaxPayload
	MaxDisks = 16
	// MaxProcessName is the length of a process's name in bytes (TASK_COMM_LEN less the final NUL, proc_pid_comm(5)).
	MaxProcessName = 15

	maxBytes     = 1 << 60 // more than any disk or memory has
	maxCPU       = 1 << 62 // ns
	maxProcesses = 4 << 20 // PID_MAX_LIMIT, proc_sys_kernel(5)
	maxSerial    = 20      // VIRTIO_BLK_ID_BYTES of the virtio specification
)

// Stats is the answer to OpStats: the use of the guest. Counters count from its boot.
type Stats struct {
	CPUNS       int64       `json:"cpu_ns"`       // time that all CPUs together were not idle, in ns
	MemoryTotal int64       `json:"memory_total"` // bytes
	MemoryUsed  int64       `json:"memory_used"`  // bytes that could not be had for something else: caches don't count
	Processes   int         `json:"processes"`    // the kernel's own threads included
	Load1       float64     `json:"load1"`        // load average of the last minute
	Disks       []DiskStats `json:"disks"`
}

// DiskStats is the use of one disk by the guest.
type DiskStats struct {
	Serial  string `json:"serial"`
	Read    int64  `json:"read"`    // bytes
	Written int64  `json:"written"` // bytes
}

// Check refuses what no guest can be like.
func (s Stats) Check() error {
	inRange := func(n int64) bool { return 0 <= n && n <= maxBytes }
	switch {
	case s.CPUNS < 0 || s.CPUNS > maxCPU:
		return fmt.Errorf("impossible CPU time %d", s.CPUNS)
	case !inRange(s.MemoryTotal) || s.MemoryUsed < 0 || s.MemoryUsed > s.MemoryTotal:
		return fmt.Errorf("impossible memory: %d bytes used of %d", s.MemoryUsed, s.MemoryTotal)
	case s.Processes < 0 || s.Processes > maxProcesses:
		return fmt.Errorf("impossible number of processes: %d", s.Processes)
	case !(s.Load1 >= 0 && s.Load1 <= maxProcesses):
		return fmt.Errorf("impossible load: %g", s.Load1)
	case len(s.Disks) > MaxDisks:
		return fmt.Errorf("%d disks, at most %d", len(s.Disks), MaxDisks)
	}
	for _, d := range s.Disks {
		if len(d.Serial) > maxSerial || !inRange(d.Read) || !inRange(d.Written) {
			return errors.New("impossible use of a disk")
		}
	}
	return nil
}

// PortsSpec is the argument of OpPorts.
type PortsSpec struct {
	Watch bool `json:"watch,omitempty"` // go on with an answer after each change, until the host closes the stream
}

// Port is a socket that something in the guest listens on.
type Port struct {
	Protocol string `json:"protocol"`          // ProtocolTCP or ProtocolUDP
	Address  string `json:"address"`           // that the socket is bound to; 0.0.0.0 and :: are any
	Port     uint16 `json:"port"`              // never 0
	Process  string `json:"process,omitempty"` // name of a process that has it open; empty: unknown, or the kernel
}

// The protocols of ports.
const (
	ProtocolTCP = "tcp"
	ProtocolUDP = "udp"
)

// Ports is the answer to OpPorts: all ports, in the order of ComparePorts; if there are more than MaxPorts, the first.
type Ports struct {
	Ports []Port `json:"ports"`
}

// Check refuses what is no list of ports. Names of processes are only bounded: they may hold anything.
func (p Ports) Check() error {
	if len(p.Ports) > MaxPorts {
		return fmt.Errorf("%d ports, at most %d", len(p.Ports), MaxPorts)
	}
	for _, port := range p.Ports {
		addr, err := netip.ParseAddr(port.Address)
		switch {
		case err != nil || addr.Zone() != "":
			return errors.New("the address of a port is none")
		case port.Protocol != ProtocolTCP && port.Protocol != ProtocolUDP:
			return errors.New("unknown protocol of a port")
		case port.Port == 0:
			return errors.New("a port with the number 0")
		case len(port.Process) > MaxProcessName:
			return errors.New("the name of a process is too long")
		}
	}
	return nil
}

// ComparePorts orders ports by protocol, number and address.
func ComparePorts(a, b Port) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Address, b.Address))
}
