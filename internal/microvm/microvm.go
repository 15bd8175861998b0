// Package microvm is the vocabulary of virtual machines: names, sizes, specifications, states and which state may
// follow which. It does no I/O and knows no mechanism.
package microvm

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"
)

// ID identifies a VM for its whole life. It is 12 lower-case hexadecimal digits; every file, socket and network device of
// a VM has a name that derives from it.
type ID string

// NewID returns a random ID.
func NewID() ID {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return ID(hex.EncodeToString(b[:]))
}

// IsID reports whether a string has the form of an ID.
func IsID(s string) bool {
	if len(s) != 12 {
		return false
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Init says what process 1 of the guest is.
type Init string

// The init modes.
const (
	InitAuto    Init = "auto"    // systemd if the image has it, else agent
	InitAgent   Init = "agent"   // banger's own agent stays process 1
	InitSystemd Init = "systemd" // the image's init; the agent answers before it has booted
)

// Net says what network a VM has.
type Net string

// The network modes.
const (
	NetUser Net = "user" // rootless user-mode network
	NetNone Net = "none" // no network device
)

// Spec is what a user asks of a VM.
type Spec struct {
	Image    string            // image name
	Kernel   string            // kernel name
	VCPUs    int               // number of virtual CPUs
	Memory   int64             // bytes
	DiskSize int64             // bytes, apparent size of each of the two sparse disks (system and work)
	Init     Init              //
	Net      Net               //
	Backend  string            // "auto", "qemu", ...
	Env      map[string]string // for every command that runs in the VM
	Labels   map[string]string
	Lifetime
	Publish     []Publish   `json:",omitempty"` // ports of the host that lead into the VM
	Main        *Process    // runs from each start on, and its end stops the VM; nil: none
	ImageConfig ImageConfig // set at creation, by the image
	Weights     Weights     // shares of what the host's VMs compete for
}

// Lifetime says when a VM is shut down by itself.
type Lifetime struct {
	TTL         time.Duration // from each start on; 0: never
	IdleTimeout time.Duration // without activity; 0: never
	AutoSuspend time.Duration // without activity, until the VM is suspended; 0: never
}

// SparePrefix begins the names of VMs that are kept for whoever wants one next. Users' names have no dots.
const SparePrefix = "spare."

// IsSpare reports whether the VM is nobody's yet.
func (v VM) IsSpare() bool { return strings.HasPrefix(v.Name, SparePrefix) }

// Weights say how much of the host a VM gets when others want it too, relative to their weights. 0 is DefaultWeight.
type Weights struct {
	CPU int
	IO  int // of the disks
}

// OrDefault returns the weights with DefaultWeight for 0.
func (w Weights) OrDefault() Weights {
	for _, v := range []*int{&w.CPU, &w.IO} {
		if *v == 0 {
			*v = DefaultWeight
		}
	}
	return w
}

// VM is one virtual machine as the store knows it.
type VM struct {
	ID          ID
	Name        string
	Spec        Spec
	ImageDigest string // of the root image that the system disk belongs to; fixed at creation
	State       State
	Cause       string // why it is in this state, for people; empty if nothing is to be said
	Ephemeral   bool   // created by `run --rm`: goes away with its command
	CreatedAt   time.Time
	ChangedAt   time.Time // of the last change of state
	BootID      string    // of the running guest, as its kernel made it; empty if not running
}
