package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// What is not as it should be is found in the same way by the daemon at its start, which mends it (Recover), and by
// whoever asks while VMs run (Inspect, Mend). A VM is looked at under its lock, so that nothing is under way with it; one
// that an operation holds is left out, for it is in good hands.

// Kind says what sort of thing a finding is about.
type Kind string

// The kinds of findings.
const (
	KindProcess   Kind = "process"   // it runs and should not, or nobody follows it
	KindState     Kind = "state"     // what is recorded of a VM is not so
	KindDisk      Kind = "disk"      // of a VM, and missing
	KindDirectory Kind = "directory" // it belongs to no VM, or to no VM that runs
	KindUnknown   Kind = "unknown"   // not banger's
)

// Finding is one thing that is not as it should be.
type Finding struct {
	Kind   Kind
	VM     string // name of the VM that it concerns; empty: none
	Path   string // of the file or directory; empty: it is none
	Pid    int    // of the process; 0: it is none
	Detail string
	Remedy string // what a person can do, if Mend leaves it alone
	Mended bool   // Mend has seen to it
	Err    error  // why Mend could not

	id      microvm.ID
	process monitorlink.Process
}

// Inspect returns what is not as it should be. It changes nothing.
func (s *Service) Inspect(ctx context.Context) ([]Finding, error) { return s.survey(ctx, false) }

// Mend sees to what Inspect finds, as Recover does, and returns what it has found and done. It touches only what is
// banger's beyond doubt: directories named by an id in the two directories of VMs, and processes that have the lock of a
// VM open. It deletes no VM but one whose creation or deletion was cut off.
func (s *Service) Mend(ctx context.Context) ([]Finding, error) { return s.survey(ctx, true) }

func (s *core) survey(ctx context.Context, mend bool) ([]Finding, error) {
	all, processes, err := s.strays(ctx)
	if err != nil {
		return nil, err
	}
	if mend {
		for i := range all {
			if f := &all[i]; f.Remedy == "" {
				f.Err = s.remove(*f)
				f.Mended = f.Err == nil
			}
		}
	}
	vms, err := s.store.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, vm := range vms {
		if vm.IsSpare() { // it is in the pool's hands
			continue
		}
		h, err := s.claimVM(ctx, vm, claimant{op: "doctor", wait: glance})
		if fault.Is(err, fault.Busy) || fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found, err := inspect(h, processes[string(vm.ID)])
		if err == nil && mend {
			mendVM(ctx, h, found)
		}
		h.release()
		if err != nil {
			return nil, fmt.Errorf("look at VM %s: %w", vm.Name, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// glance is how long a look at a VM waits for its lock.
const glance = time.Millisecond

// inspect looks at one VM.
func inspect(h *hold, processes []monitorlink.Process) (found []Finding, err error) {
	add := func(f Finding, format string, args ...any) {
		f.VM, f.id, f.Detail = h.vm.Name, h.vm.ID, fmt.Sprintf(format, args...)
		found = append(found, f)
	}
	held, err := h.dirs().Alive()
	if err != nil {
		return nil, err
	}
	state := h.vm.State
	switch a := h.attachment(); {
	case a != nil && (ended(a) || state.Live()):
		// All is well, or its end is recorded as soon as its lock is free.
	case a != nil:
		add(Finding{Kind: KindState}, "it is recorded as %s, and it runs", state)
	case held:
		f := Finding{Kind: KindProcess}
		who := "a process"
		if len(processes) > 0 {
			f.Pid = processes[0].Pid
			who = processes[0].Command
		}
		add(f, "it is recorded as %s; %s holds its disks, and the daemon does not follow it", state, who)
	case state.HasProcess():
		add(Finding{Kind: KindState}, "it is recorded as %s, and nothing runs", state)
	case state == microvm.Creating, state == microvm.Deleting:
		add(Finding{Kind: KindState}, "it was cut off while it was %s", state)
	default:
		if _, err := os.Lstat(h.dirs().Runtime); err == nil {
			add(Finding{Kind: KindDirectory, Path: h.dirs().Runtime}, "it is %s, and files of its running are left", state)
		}
	}
	if state != microvm.Creating && state != microvm.Deleting {
		for _, path := range h.diskPaths(h.vm.ID) {
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				add(Finding{Kind: KindDisk, Path: path, Remedy: "put the file back, or delete the VM: banger vm delete " + h.vm.Name},
					"its disk is missing")
			}
		}
	}
	return found, nil
}

func ended(a *attachment) bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// mendVM brings a VM to what the table of recovery says, and notes in the findings how that went.
func mendVM(ctx context.Context, h *hold, found []Finding) {
	due := false
	for _, f := range found {
		due = due || f.Remedy == ""
	}
	if !due {
		return
	}
	ctx = context.WithoutCancel(ctx)
	var err error
	if a := h.attachment(); a != nil {
		err = h.recoverBy(ctx, recovery[h.vm.State][alive], a)
	} else {
		err = reconcile(ctx, h, false)
	}
	for i := range found {
		if f := &found[i]; f.Remedy == "" {
			f.Err, f.Mended = err, err == nil
		}
	}
}

// strays returns what lies in the directories of VMs, or holds the lock of one, and belongs to no VM that is recorded. It
// also returns all processes that hold the lock of a VM, by its id.
func (s *core) strays(ctx context.Context) ([]Finding, map[string][]monitorlink.Process, error) {
	// The records are read last: what is made after that, or is being deleted meanwhile, is not taken for a stray.
	var found []Finding
	for _, parent := range []string{s.config.Runtime, s.config.VMs} {
		entries, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("look for leftovers: %w", err)
		}
		for _, e := range entries {
			f := Finding{Kind: KindDirectory, Path: filepath.Join(parent, e.Name()), id: microvm.ID(e.Name()), Detail: "it belongs to no VM"}
			if !microvm.IsID(e.Name()) || !e.IsDir() {
				f.Kind, f.id, f.Detail, f.Remedy = KindUnknown, "", "it is not banger's", "look at it, and move it elsewhere"
			}
			found = append(found, f)
		}
	}
	processes, err := monitorlink.Processes(s.config.VMs)
	if err != nil {
		return nil, nil, fmt.Errorf("look for leftovers: %w", err)
	}
	for id, ps := range processes {
		for _, p := range ps {
			if microvm.IsID(id) {
				found = append(found, Finding{
					Kind: KindProcess, Pid: p.Pid, process: p, id: microvm.ID(id), Detail: "it belongs to no VM: " + p.Command,
				})
			}
		}
	}
	vms, err := s.store.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	known := map[microvm.ID]bool{}
	for _, vm := range vms {
		known[vm.ID] = true
	}
	strays := found[:0]
	for _, f := range found {
		if f.id == "" || !known[f.id] {
			strays = append(strays, f)
		}
	}
	slices.SortFunc(strays, func(a, b Finding) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Path, b.Path), cmp.Compare(a.Pid, b.Pid))
	})
	return strays, processes, nil
}

// remove ends a stray process or removes a stray directory, when nothing runs in it any more.
func (s *core) remove(f Finding) error {
	what := f.Path
	if f.Kind == KindProcess {
		what = fmt.Sprintf("process %d (%s)", f.Pid, f.process.Command)
	}
	s.log.Info("remove what belongs to no VM", "what", strings.TrimSpace(what))
	if f.Kind == KindProcess {
		return f.process.Kill()
	}
	if err := s.dirsOf(f.id).KillMonitor(killTimeout); err != nil {
		return err
	}
	return os.RemoveAll(f.Path)
}
