package monitorlink

import (
	"context"
	"time"

	"banger/internal/fault"
)

// Settings are what of a running VM can change.
type Settings struct {
	Memory      int64         // bytes that the guest has
	TTL         time.Duration // from the VM's start on; then it is shut down; 0: none
	IdleTimeout time.Duration // without activity; then it is shut down; 0: none
	AutoSuspend time.Duration // without activity; then the daemon is told; 0: never
	CPUWeight   int           // as in cgroup.Limits
	IOWeight    int
}

// Settings returns what a VM has at its start.
func (l Launch) Settings() Settings {
	return Settings{
		Memory: l.Machine.Memory, TTL: l.TTL, IdleTimeout: l.IdleTimeout, AutoSuspend: l.AutoSuspend,
		CPUWeight: l.Limits.CPUWeight, IOWeight: l.Limits.IOWeight,
	}
}

// SettingsChange is the argument of OpSet. What is nil stays as it is.
type SettingsChange struct {
	Memory      *int64         `json:",omitempty"` // bytes, up to what the VM was started with
	TTL         *time.Duration `json:",omitempty"`
	IdleTimeout *time.Duration `json:",omitempty"`
	CPUWeight   *int           `json:",omitempty"`
	IOWeight    *int           `json:",omitempty"`
}

// Set changes what can be changed of the running VM, and returns what it was before. The change of memory is waited
// for: fault.Timeout if the guest has not given up, within some seconds, what it was asked for, though it may go on;
// fault.Precondition if the VM is paused, or its time to live would be over already; fault.Unsupported if the VMM or the
// host cannot do it, or the monitor is of an older banger.
func (c *Client) Set(ctx context.Context, change SettingsChange) (before Settings, err error) {
	conn, err := c.request(ctx, Request{Op: OpSet, Set: &change})
	if err != nil {
		return before, err
	}
	defer conn.Close() //nolint:errcheck // nothing to flush
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := ReadLine(conn, &before); err != nil {
		return before, fault.New(fault.Unavailable, "talk to the VM's monitor: %w", err)
	}
	return before, nil
}
