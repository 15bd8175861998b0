// Package monitorlink is how the daemon and the monitor of a VM meet: what the daemon hands to a monitor at its start
// (Launch), what the monitor says of itself (Status), the files by which one finds the other after a crash, and the
// client end of the monitor's socket. It owns no VM and takes no decision; package monitor holds the other end.
//
// The protocol: a connection carries one request. The client writes one line of JSON (Request); the monitor answers with
// one line (response) and, for some requests, the connection then carries raw bytes or further lines. Both ends belong
// to the same user; what comes from the guest passes through as opaque bytes.
package monitorlink

import (
	"encoding/json"
	"net/netip"
	"time"

	"banger/internal/cgroup"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
)

// Launch is everything a monitor needs to know. The daemon writes it to the VM's directory before it starts the monitor.
type Launch struct {
	ID          microvm.ID
	Name        string
	Backend     string          // a key of the monitor's table of backends
	Accelerator string          // "kvm" or "tcg": decided by the daemon, once
	Reason      string          // why this backend and accelerator, for people
	Host        json.RawMessage // what the backend knows of the host, in the backend's own words
	Machine     hypervisor.Machine
	Network     *Network // nil: none
	Publish     []microvm.Publish
	Group       cgroup.Group  // that the monitor enters before it starts the VMM
	Limits      cgroup.Limits // of the group
	microvm.Lifetime
	BootTimeout time.Duration // until the agent must have answered
	Restore     *Restore      // nil: the VM boots
	Nice        int           // of the monitor and all that it starts, setpriority(2)
}

// Restore says that the VM is not booted but continued from a snapshot, and who it is from then on.
type Restore struct {
	Snapshot  hypervisor.Snapshot
	Hostname  string
	MachineID string // 32 hexadecimal digits
	BootID    string // a UUID, in the place of that of the guest which was saved; empty: it is the same machine and keeps its own
	Parked    bool   // it is a spare: nobody's until OpClaim
}

// Network describes the VM's user-mode network.
type Network struct {
	Guest   netip.Prefix   // the guest's address in its private network
	Gateway netip.Addr     // the gateway, which is also the DNS server
	MTU     int            // bytes
	Allow   []netip.Prefix // what the user has granted beyond the default egress policy
}

// Phase is how far a monitor has come.
type Phase string

// The phases, in order.
const (
	Booting Phase = "booting" // the VMM is being started or the guest boots
	Ready   Phase = "ready"   // the agent has answered
	Ended   Phase = "ended"   // the VMM is gone; the monitor is about to be
)

// Status is what a monitor says of itself.
type Status struct {
	Phase         Phase
	Parked        bool // it is a spare that nobody has claimed yet
	Paused        bool
	MonitorPid    int
	VMMPid        int
	BootID        string // of the guest, from Ready on
	KernelRelease string
	AgentVersion  string
	Reachable     bool // the guest link is up
	Idle          int  // how often nothing had happened in the guest for as long as Settings.AutoSuspend
	Stages        []Stage
	Settings      Settings // at present
	Published     []Published
	Exit          *Exit // in Ended
}

// Stage is a finished step of the boot.
type Stage struct {
	Name    string
	Elapsed time.Duration
}

// Cause says why a monitor ended. It is one of the hypervisor's causes or one of these.
type Cause string

// Causes beyond those of the hypervisor.
const (
	BootTimeout Cause = "boot-timeout" // the agent did not answer in time
	TTLExpired  Cause = "ttl"          // its time was up
	IdleExpired Cause = "idle"         // nothing had happened in it for too long
	BootFailed  Cause = "boot-failed"  // the VMM could not be started
	MonitorLost Cause = "monitor-lost" // the monitor is gone and left no word: killed, or the host went down
	// RestoreFailed: the VM could not be continued from its snapshot. It may boot.
	RestoreFailed Cause = "restore-failed"
)

// Exit says how a monitor ended. The monitor leaves it in the VM's directory.
type Exit struct {
	Cause       Cause
	Kind        string `json:",omitempty"` // of a fault, with BootFailed and RestoreFailed: what kind of failure it was
	Detail      string
	Hint        string
	ConsoleTail string // the last lines of the console, if the end was not asked for
	At          time.Time
}

// Op names a request.
type Op string

// The requests.
const (
	OpWatch   Op = "watch"   // a line with a Status now and after each change, until the monitor's end
	OpStream  Op = "stream"  // raw: a new stream to the agent in the guest
	OpConsole Op = "console" // raw, both ways: the serial console from now on
	OpFollow  Op = "follow"  // raw: the console's log so far, then what comes
	OpKill    Op = "kill"    // end the VMM; answered when it is gone
	OpSignal  Op = "signal"  // send Request.Signal to the VMM
	OpPause   Op = "pause"
	OpResume  Op = "resume"
	OpGrow    Op = "grow"    // make a disk larger, as Request.Grow says
	OpSet     Op = "set"     // a line with the Settings before: change them as Request.Set says
	OpSamples Op = "samples" // lines with a Sample each, as Request.Samples says
	OpClaim   Op = "claim"   // make a spare the VM that Request.Claim says, and let it go on
	OpSave    Op = "save"    // a line with Saved, once the snapshot that Request.Save asks for is whole
)

// Request is the first line of a connection.
type Request struct {
	Op      Op
	Signal  int             `json:",omitempty"` // with OpSignal
	Grow    *GrowSpec       `json:",omitempty"` // with OpGrow
	Set     *SettingsChange `json:",omitempty"` // with OpSet
	Samples *SamplesSpec    `json:",omitempty"` // with OpSamples; nil: the newest
	Save    *SaveSpec       `json:",omitempty"` // with OpSave
	Claim   *ClaimSpec      `json:",omitempty"` // with OpClaim
}

// SaveSpec says where a snapshot goes. All files are made by the monitor and none may be there; on failure none is left.
type SaveSpec struct {
	Snapshot hypervisor.Snapshot
	Disks    map[string]string // by serial of a writable disk, the path of its copy as of the same moment
}

// Saved says how a snapshot was made.
type Saved struct {
	Paused time.Duration // how long the guest stood still
	Live   bool          // the memory was written while the guest went on
	// Attached is how many streams to the guest and consoles were open.
	Attached int
}

// GrowSpec says which disk is to have what size.
type GrowSpec struct {
	Serial string
	Size   int64 // bytes
}

// Response is the monitor's answer to a request.
type Response struct {
	Kind    string // a fault kind; empty: all is well
	Message string
	Hint    string
}
