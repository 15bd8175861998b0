package monitorlink

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process that has the lock of a VM open: a monitor, its VMM, or what one of these has started. Nothing but
// a daemon hands that file out, so to have it open proves that the process is banger's, whatever became of its VM.
type Process struct {
	Pid     int
	Start   uint64 // clock ticks after boot, field 22 of /proc/pid/stat, proc(5)
	Command string // its command line, or its name if it has none; for people
}

// Processes finds the processes that have the lock of a VM open whose state directory lies, or lay, in vms. The key is the
// name of the VM's directory. Processes that cannot be looked into are other users', and left out; so is the caller.
func Processes(vms string) (map[string][]Process, error) {
	var dir unix.Stat_t
	if err := unix.Stat(vms, &dir); err != nil {
		return nil, fmt.Errorf("look at %s: %w", vms, err)
	}
	real, err := filepath.EvalSymlinks(vms)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", vms, err)
	}
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	self, _ := os.ReadFile("/proc/self/cmdline")
	found := map[string][]Process{}
	for _, proc := range pids {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		name := lockOf(proc, real, dir.Dev)
		if name == "" {
			continue
		}
		cmdline, err := os.ReadFile(proc + "/cmdline")
		// A child of the caller that has not become its own program yet has copies of all descriptors for a moment.
		if err != nil || bytes.Equal(cmdline, self) {
			continue
		}
		start, err := startTime(pid)
		if err != nil {
			continue // gone
		}
		found[name] = append(found[name], Process{Pid: pid, Start: start, Command: commandOf(proc, cmdline)})
	}
	return found, nil
}

// lockOf returns the name of the VM's directory in vms whose lock a process has open, or nothing.
func lockOf(proc, vms string, dev uint64) string {
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		path := filepath.Join(proc, "fd", fd.Name())
		target, err := os.Readlink(path)
		if err != nil {
			continue
		}
		target = strings.TrimSuffix(target, " (deleted)") // proc(5), /proc/pid/fd
		state, file := filepath.Split(target)
		state = filepath.Clean(state)
		if file != filepath.Base(Dirs{}.lock()) || filepath.Dir(state) != vms {
			continue
		}
		// The same path may mean another file in a mount namespace of the process's own.
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Dev == dev && int(st.Uid) == os.Geteuid() {
			return filepath.Base(state)
		}
	}
	return ""
}

// maxCommand bounds the command line that is shown, in bytes.
const maxCommand = 120

func commandOf(proc string, cmdline []byte) string {
	text := strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	if text == "" {
		comm, _ := os.ReadFile(proc + "/comm")
		text = strings.TrimSpace(string(comm))
	}
	if len(text) > maxCommand {
		text = text[:maxCommand] + "..."
	}
	return text
}

// Kill kills the process, and nothing that merely has its pid by now.
func (p Process) Kill() error { return killExactly(identity{Pid: p.Pid, Start: p.Start}) }

// killHolders kills whatever has the lock open.
func (d Dirs) killHolders() error {
	all, err := Processes(filepath.Dir(d.State))
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range all[filepath.Base(d.State)] {
		errs = append(errs, p.Kill())
	}
	return errors.Join(errs...)
}
