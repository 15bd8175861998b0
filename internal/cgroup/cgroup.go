// Package cgroup puts a VM's processes under limits of the host's kernel: weights for CPU and disks, a limit of memory and
// one of processes. It owns where on this host cgroups can be made without asking anybody, of version 2 or 1, and the one
// group per VM that is made there. It decides no limit.
//
// A place is found by trying, for what the mount options say of a container or a user's session is not what it may do.
// Groups are made below the calling process's own cgroup or, with version 2, below the nearest one above it that may
// have children with controllers (a group of version 2 that has processes may not).
//
// A group is a value that can be written down: whoever finds it again after a crash can remove it. There are no
// goroutines and no locks; a group has one user at a time, the holder of the VM's lock.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Controller is one thing that a cgroup can limit.
type Controller string

// The controllers, by the names of version 2.
const (
	CPU    Controller = "cpu"
	IO     Controller = "io"
	Memory Controller = "memory"
	Pids   Controller = "pids"
)

// Weights of CPU and disks, as of version 2 (Documentation/admin-guide/cgroup-v2.rst, "Weights").
const (
	MinWeight     = 1
	DefaultWeight = 100
	MaxWeight     = 10000
)

// Limits are what a group is held to. Zero values are not set.
type Limits struct {
	CPUWeight int   // MinWeight to MaxWeight: share of the CPUs when others want them too
	IOWeight  int   // likewise of the disks
	Memory    int64 // bytes, page cache included
	Pids      int   // processes and threads
}

// Parent is where groups of one controller are made.
type Parent struct {
	Dir     string
	Version int // 1 or 2
}

// Place is where groups can be made. Controllers that are not in it cannot be had.
type Place map[Controller]Parent

// Group is the group of one VM. Its zero value is no group: nothing can be done with it, and nothing is an error.
type Group struct {
	Name    string
	Parents Place
}

// prefix marks what this program has made.
const prefix = "banger-"

// Group returns the group of a VM, by the VM's id. It need not exist.
func (p Place) Group(id string) Group { return Group{Name: prefix + id, Parents: p} }

// Has reports whether the group can limit something.
func (g Group) Has(c Controller) bool { return g.Parents[c].Dir != "" }

// dirs returns the directories of the group: one with version 2, one for each controller with version 1.
func (g Group) dirs() []string {
	var dirs []string
	for _, parent := range g.Parents {
		dirs = append(dirs, filepath.Join(parent.Dir, g.Name))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// Enter makes the group, sets its limits and moves the calling process into it, with all its threads; children that it
// starts from then on are born there. The limits that could be set hold even if it fails.
func (g Group) Enter(l Limits) error {
	var errs []error
	for _, dir := range g.dirs() {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { // as all cgroups
			errs = append(errs, fmt.Errorf("make cgroup: %w", err))
		}
	}
	errs = append(errs, g.Set(l))
	for _, dir := range g.dirs() {
		if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(os.Getpid())); err != nil {
			errs = append(errs, fmt.Errorf("enter cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// nobody is a pid that no process can have (PID_MAX_LIMIT of linux/threads.h).
const nobody = 4<<20 + 1

// Hasten makes the entering of a group that comes within the next moments quick, and returns at once. The kernel waits some 10 ms
// for all its CPUs before a process changes groups, but not if one has done so just before (cgroup_threadgroup_rwsem, which
// is an rcu_sync); a move of a process that there can't be is waited for in the same way, and changes nothing.
func (p Place) Hasten() {
	for _, parent := range p {
		if parent.Dir != "" {
			go func() { _ = write(filepath.Join(parent.Dir, "cgroup.procs"), strconv.Itoa(nobody)) }()
			return // one lock is for all of them
		}
	}
}

// Set sets limits of a group that exists. What the group cannot limit is left out.
func (g Group) Set(l Limits) error {
	var errs []error
	for _, set := range []struct {
		controller Controller
		value      int64
	}{{CPU, int64(l.CPUWeight)}, {IO, int64(l.IOWeight)}, {Memory, l.Memory}, {Pids, int64(l.Pids)}} {
		parent := g.Parents[set.controller]
		if set.value <= 0 || parent.Dir == "" {
			continue
		}
		name, text := knob(set.controller, parent.Version, set.value)
		if err := write(filepath.Join(parent.Dir, g.Name, name), text); err != nil {
			errs = append(errs, fmt.Errorf("set %s of cgroup: %w", set.controller, err))
		}
	}
	return errors.Join(errs...)
}

// knob returns the file that holds a limit, relative to its group, and what is to be written there.
func knob(c Controller, version int, value int64) (name, text string) {
	if version == 1 {
		switch c {
		case CPU: // 1024 is the default; the kernel takes 2 to 2^18 (sched_group_set_shares)
			return "cpu.shares", strconv.FormatInt(min(max(value*1024/DefaultWeight, 2), 1<<18), 10)
		case IO: // of the BFQ scheduler, with the range 1 to 1000 and the default 100
			return "blkio.bfq.weight", strconv.FormatInt(min(value, 1000), 10)
		case Memory:
			return "memory.limit_in_bytes", strconv.FormatInt(value, 10)
		case Pids: // as in version 2
		}
	}
	text = strconv.FormatInt(value, 10)
	switch c {
	case CPU:
		return "cpu.weight", text
	case IO:
		return "io.weight", "default " + text
	case Memory:
		return "memory.max", text
	default:
		return "pids.max", text
	}
}

// write writes to a file of cgroupfs, which is never created.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Remove removes the group. Its processes have ended; the kernel may need a moment to see that, for which it waits up to a
// time. A group that is not there is no error.
func (g Group) Remove(wait time.Duration) error {
	var errs []error
	deadline := time.Now().Add(wait)
	for _, dir := range g.dirs() {
		for {
			err := unix.Rmdir(dir) // os.Remove would try to unlink it first
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				errs = append(errs, fault.New(fault.Internal, "remove cgroup %s: %w", dir, err))
				break
			}
			time.Sleep(5 * time.Millisecond) // nothing tells of it with version 1
		}
	}
	return errors.Join(errs...)
}

// String names the controllers and their version, for people.
func (p Place) String() string {
	var words []string
	for _, c := range []Controller{CPU, IO, Memory, Pids} {
		if parent, ok := p[c]; ok {
			words = append(words, fmt.Sprintf("%s (cgroup v%d)", c, parent.Version))
		}
	}
	if words == nil {
		return "nothing"
	}
	return strings.Join(words, ", ")
}
