package monitorlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Dirs are the two directories of one VM: state survives a reboot of the host, runtime does not have to.
type Dirs struct {
	State   string // disks, console log, launch and exit records, the monitor's lock and pid
	Runtime string // the monitor's socket
}

// Files of a VM.
func (d Dirs) launch() string   { return filepath.Join(d.State, "launch.json") }
func (d Dirs) exit() string     { return filepath.Join(d.State, "exit.json") }
func (d Dirs) log() string      { return filepath.Join(d.State, "monitor.log") }
func (d Dirs) identity() string { return filepath.Join(d.State, "monitor.json") }

// The lock protects the disks, so it lies beside them: the runtime directory can vanish while the VM runs (the user logs
// out), and a second VMM on the same disks would destroy them.
func (d Dirs) lock() string { return filepath.Join(d.State, "monitor.lock") }

// Socket is where the monitor listens.
func (d Dirs) Socket() string { return filepath.Join(d.Runtime, "m.sock") }

// ConsoleLog is the file that holds what the guest printed.
func (d Dirs) ConsoleLog() string { return filepath.Join(d.State, "console.log") }

// identity names a process in a way that a reused pid cannot imitate.
type identity struct {
	Pid   int
	Start uint64 // clock ticks after boot, field 22 of /proc/pid/stat, proc(5)
}

// ReadLaunch reads what the daemon wrote for this VM.
func (d Dirs) ReadLaunch() (Launch, error) {
	var l Launch
	err := readJSON(d.launch(), &l)
	return l, err
}

// ReadExit reads the word that the last monitor left. If it left none, the cause is MonitorLost.
func (d Dirs) ReadExit() Exit {
	var e Exit
	if err := readJSON(d.exit(), &e); err != nil || e.Cause == "" {
		return Exit{
			Cause:  MonitorLost,
			Detail: "its monitor ended without a word: it was killed, or the host went down",
			At:     time.Now(),
		}
	}
	return e
}

// WriteExit leaves the monitor's last word.
func (d Dirs) WriteExit(e Exit) error { return WriteJSON(d.exit(), e) }

// ForgetExit removes the last word of a monitor that was there before, so that it is not taken for the next one's.
func (d Dirs) ForgetExit() error {
	if err := os.Remove(d.exit()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old exit record: %w", err)
	}
	return nil
}

// acquire takes the VM's monitor lock for whoever holds the returned file. A flock(2) belongs to the open file, so it can
// be handed to a child and lasts until the last process that has the file is gone.
func (d Dirs) acquire() (*os.File, error) {
	f, err := os.OpenFile(d.lock(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open monitor lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.New(fault.Busy, "another monitor has this VM: %w", err)
	}
	return f, nil
}

// Identify leaves the calling process's identity for KillMonitor.
func (d Dirs) Identify() error {
	start, err := startTime(os.Getpid())
	if err == nil {
		err = WriteJSON(d.identity(), identity{Pid: os.Getpid(), Start: start})
	}
	if err != nil {
		return fmt.Errorf("leave monitor identity: %w", err)
	}
	return nil
}

// Alive reports whether some process holds the VM's monitor lock: the monitor, or its VMM that is just dying.
func (d Dirs) Alive() (bool, error) {
	f, err := os.OpenFile(d.lock(), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open monitor lock: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	// Given back now: a child that is just being started has a copy of the file until it has become its own program, and
	// would keep the lock for as long.
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	if err != nil {
		return false, fmt.Errorf("test monitor lock: %w", err)
	}
	return false, nil
}

// quickly is how long a monitor and its VMM may take to be gone after the monitor was killed, before they are looked for
// one by one: a VMM whose monitor was not its parent any more, or whose record is damaged.
const quickly = time.Second

// KillMonitor kills a monitor that does not answer and waits until it is gone, and with it all that has its lock. A
// process that merely has the pid that the monitor once had is left alone.
func (d Dirs) KillMonitor(timeout time.Duration) error {
	began := time.Now()
	deadline, patience := began.Add(timeout), began.Add(min(quickly, timeout/2))
	for {
		alive, err := d.Alive()
		if err != nil {
			return err
		}
		if !alive {
			return d.removeGroup(time.Until(deadline))
		}
		var id identity
		if err := readJSON(d.identity(), &id); err == nil {
			if err := killExactly(id); err != nil {
				return err
			}
		}
		if now := time.Now(); now.After(patience) {
			patience = now.Add(quickly)
			if err := d.killHolders(); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Timeout, "the monitor of the VM in %s does not end", d.State).
				WithHint("find the process that holds %s and end it", d.lock())
		}
		// The lock goes when the kernel has torn the processes down: mostly that is the monitor, whose end can be seen.
		awaitExactly(id, killPoll)
	}
}

// killPoll is how long a wait for a killed monitor lasts at most before its lock is looked at again.
const killPoll = 5 * time.Millisecond

// removeGroup removes the cgroup of a monitor that is gone. A launch record that cannot be read names none.
func (d Dirs) removeGroup(wait time.Duration) error {
	l, err := d.ReadLaunch()
	if err != nil {
		return nil //nolint:nilerr // there was no launch, or the disk lost it with all else
	}
	return l.Group.Remove(wait)
}

// killExactly kills a process by a descriptor of it, so that the pid cannot change hands in between.
func killExactly(id identity) error {
	if id.Pid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(id.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", id.Pid, err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to flush
	if start, err := startTime(id.Pid); err != nil || start != id.Start {
		return nil //nolint:nilerr // gone, or someone else's pid by now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill monitor %d: %w", id.Pid, err)
	}
	return nil
}

// awaitExactly waits until a process has ended, or for as long as is said. If it has ended already it waits a fifth of that, for
// something else is waited for.
func awaitExactly(id identity, atMost time.Duration) {
	fd, err := unix.PidfdOpen(id.Pid, 0)
	if err != nil || id.Pid <= 1 {
		time.Sleep(atMost / 5)
		return
	}
	defer unix.Close(fd) //nolint:errcheck // nothing to flush
	if start, err := startTime(id.Pid); err != nil || start != id.Start {
		time.Sleep(atMost / 5)
		return
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(atMost/time.Millisecond)) // descriptors are small
}

// startTime reads when a process started.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is in parentheses and may hold anything; the last ) ends it.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const startField = 22 - 3 // counted from the state, which is field 3
	if len(fields) <= startField {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[startField], 10, 64)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.New(fault.Corrupt, "%s: %w", path, err)
	}
	return nil
}

// WriteJSON writes a value to a file, whole or not at all. A file has one writer at a time: whoever holds the VM's lock.
func WriteJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	tmp := path + ".tmp" // always the same name, so that what a killed process leaves is written over
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		_ = os.Remove(tmp)
		if errors.Is(err, syscall.ENOSPC) {
			return fault.New(fault.Exhausted, "%w", err).WithHint("free some disk space and try again")
		}
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// maxMonitorLog bounds what ReadLog returns, in bytes.
const maxMonitorLog = 4 << 10

// ReadLog returns the end of what the monitor has written to its log.
func (d Dirs) ReadLog() string {
	b, err := os.ReadFile(d.log())
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b[max(0, len(b)-maxMonitorLog):]))
}
