package microvm

import "slices"

// State is where a VM is in its life, as recorded in the store. A state that ends in -ing is an intent: it is recorded
// before the work begins, so that a crash in the midst of the work leaves something to recover from.
type State string

// The states.
const (
	Creating  State = "creating"  // disks are being made
	Stopped   State = "stopped"   // whole, not running
	Starting  State = "starting"  // a monitor is being started
	Running   State = "running"   // the agent has answered
	Paused    State = "paused"    // vCPUs stopped, memory kept
	Suspended State = "suspended" // saved to the disk, without processes: who reaches for its guest lets it go on
	Stopping  State = "stopping"  // on the way to stopped
	Deleting  State = "deleting"  // on the way out; only delete may follow
	Failed    State = "failed"    // a start failed; logs are kept; may be started again or deleted
)

// States returns every state.
func States() []State {
	return []State{Creating, Stopped, Starting, Running, Paused, Suspended, Stopping, Deleting, Failed}
}

// next is the table of legal changes.
var next = map[State][]State{ //nolint:gochecknoglobals // a constant table
	Creating:  {Stopped, Deleting},
	Stopped:   {Starting, Deleting},
	Starting:  {Running, Stopped, Failed},
	Running:   {Paused, Suspended, Stopping, Stopped, Failed},
	Paused:    {Running, Stopping, Stopped, Failed},
	Suspended: {Starting, Stopped, Deleting},
	Stopping:  {Stopped, Failed},
	Failed:    {Starting, Stopped, Deleting},
	Deleting:  {},
}

// MayBecome reports whether a VM in state s may be recorded in state t next.
func (s State) MayBecome(t State) bool {
	return slices.Contains(next[s], t)
}

// HasProcess reports whether a VM in this state may have a living monitor process.
func (s State) HasProcess() bool {
	switch s {
	case Starting, Running, Paused, Stopping:
		return true
	case Creating, Stopped, Suspended, Deleting, Failed:
		return false
	}
	return false
}

// Live reports whether the guest is up: it runs or is paused.
func (s State) Live() bool { return s == Running || s == Paused }
