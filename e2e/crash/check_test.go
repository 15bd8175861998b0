//go:build vm

package crash

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// processes lists what runs in the home, by the environment that all of banger's processes inherit.
func (b *bed) processes() map[int]string {
	found := map[int]string{}
	mark := []byte("XDG_STATE_HOME=" + filepath.Join(b.home, "state"))
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ")) // nothing is in that of a zombie
		if pid == os.Getpid() || !bytes.Contains(environ, mark) {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		found[pid] = strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	}
	return found
}

// zombies counts the children that a process has not waited for.
func zombies(parent int) (n int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(text), ") ") // proc_pid_stat(5): the state and the parent follow the name
		if f := strings.Fields(rest); len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(parent) {
			n++
		}
	}
	return n
}

// vmFiles are the files that the directory of a VM may hold.
func vmFiles() []string {
	return []string{
		"snapshots", "origin.json", "origin.taken.json", "suspended",
		"system.img", "work.img", "console.log", "console.log.1",
		"launch.json", "exit.json", "monitor.json", "monitor.lock", "monitor.log", "home",
		// Half-written by a process that was killed, and written over by the next.
		"launch.json.tmp", "exit.json.tmp", "monitor.json.tmp",
	}
}

// consistent checks that every VM is at rest, is what its state says, and that there is nothing besides. What takes a
// moment, such as the end of a killed process, is given one.
func (b *bed) consistent(ctx context.Context, c client) []*bangerv1.VM {
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		vms, problems := b.look(ctx, c)
		if len(problems) == 0 {
			return vms
		}
		if time.Now().After(deadline) {
			b.Errorf("%s\nthe daemon said:\n%s", strings.Join(problems, "\n"), b.lastLog())
			return vms
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *bed) look(ctx context.Context, c client) (vms []*bangerv1.VM, problems []string) {
	vms, err := c.list(ctx)
	if err != nil {
		return nil, []string{err.Error()}
	}
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	expected := map[int]bool{b.pid(): true}
	known, up := map[string]bool{}, map[string]bool{}
	for _, vm := range vms {
		known[vm.GetId()] = true
		switch state := microvm.State(vm.GetState()); state {
		case microvm.Running, microvm.Paused:
			up[vm.GetId()] = true
			expected[int(vm.GetMonitorPid())], expected[int(vm.GetVmmPid())] = true, true
			if vm.GetVmmPid() == 0 || syscall.Kill(int(vm.GetVmmPid()), 0) != nil || syscall.Kill(int(vm.GetMonitorPid()), 0) != nil {
				bad("VM %s is %s and its processes %d and %d are not there", vm.GetName(), state, vm.GetMonitorPid(), vm.GetVmmPid())
			}
		case microvm.Stopped, microvm.Suspended, microvm.Failed:
			d := monitorlink.Dirs{State: b.state("vms", vm.GetId())}
			if held, err := d.Alive(); held || err != nil {
				bad("VM %s is %s and its lock is held: %t, %v", vm.GetName(), state, held, err)
			}
		default:
			bad("VM %s is %s (%s)", vm.GetName(), state, vm.GetCause())
		}
		problems = append(problems, b.lookInto(vm)...)
	}
	for pid, cmdline := range b.processes() {
		if !expected[pid] {
			bad("process %d belongs to no VM that runs: %s", pid, cmdline)
		}
	}
	if n := zombies(b.pid()); n > 0 {
		bad("the daemon has not waited for %d children", n)
	}
	problems = append(problems, strangers(b.state("vms"), known)...)
	problems = append(problems, strangers(b.state("forks"), nil)...)
	problems = append(problems, strangers(b.runtime("vms"), up)...)
	problems = append(problems, strangers(b.runtime(), map[string]bool{"banger.sock": true, "vms": true})...)
	return vms, append(problems, strangers(filepath.Join(b.home, "tmp"), nil)...)
}

// lookInto checks the directories of one VM.
func (b *bed) lookInto(vm *bangerv1.VM) (problems []string) {
	dir := b.state("vms", vm.GetId())
	for _, disk := range []string{"system.img", "work.img"} {
		if info, err := os.Stat(filepath.Join(dir, disk)); err != nil || info.Size() != microvm.MinDiskSize {
			problems = append(problems, fmt.Sprintf("VM %s (%s): %s: %v, %v", vm.GetName(), vm.GetState(), disk, info, err))
		}
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !slices.Contains(vmFiles(), e.Name()) {
			problems = append(problems, fmt.Sprintf("VM %s has a file %s", vm.GetName(), e.Name()))
		}
	}
	return problems
}

func strangers(dir string, known map[string]bool) (problems []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		if !known[e.Name()] {
			problems = append(problems, "belongs to nothing: "+filepath.Join(dir, e.Name()))
		}
	}
	return problems
}

// empty deletes every VM and checks that nothing is left.
func (b *bed) empty(ctx context.Context, c client) {
	b.Helper()
	vms, err := c.list(ctx)
	b.must(err)
	for _, vm := range vms {
		// Whoever was left without a client may have been quicker.
		if err := c.delete(ctx, vm.GetId(), true); err != nil && !fault.Is(err, fault.NotFound) {
			b.Errorf("delete %s (%s): %v", vm.GetName(), vm.GetState(), err)
		}
	}
	if vms := b.consistent(ctx, c); len(vms) > 0 {
		b.Errorf("%d VMs are left", len(vms))
	}
}

// usage is what a process uses that must not grow.
type usage struct{ fds, threads int }

// usageOf leaves out the files of the database, of which a pool of connections opens up to a dozen as it needs them.
func usageOf(pid int) usage {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	fds = slices.DeleteFunc(fds, func(fd string) bool {
		target, _ := os.Readlink(fd)
		return strings.Contains(target, "banger.db")
	})
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return usage{len(fds), len(threads)}
}

// settled waits until no more than the descriptors given are open: connections that have just been closed take a moment.
func settled(pid, fds int) usage {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if u := usageOf(pid); u.fds <= fds || time.Now().After(deadline) {
			return u
		}
	}
}

// goroutines ends the daemon with SIGABRT, upon which Go prints every goroutine, and returns those that serve a VM or a
// call: an idle daemon without VMs has none.
func (b *bed) goroutines() (all int, busy []string) {
	b.Helper()
	b.kill(syscall.SIGABRT)
	b.mu.Lock()
	n := b.logs
	b.mu.Unlock()
	text, err := os.ReadFile(filepath.Join(b.home, fmt.Sprintf("daemon%d.log", n)))
	b.must(err)
	for g := range strings.SplitSeq(string(text), "\n\n") {
		if !strings.HasPrefix(strings.TrimSpace(g), "goroutine ") {
			continue
		}
		all++
		for _, mark := range []string{"machines.(*Service).follow", "machines.(*hold)", "hostexec.Start", "guestlink.", "rpcapi.(*VMs)"} {
			if strings.Contains(g, mark) {
				busy = append(busy, g)
				break
			}
		}
	}
	return all, busy
}
