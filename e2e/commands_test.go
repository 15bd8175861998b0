//go:build vm

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// processesOf lists the processes whose environment or command line names a scenario's directory.
func processesOf(dir string) []int {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(p, "environ"))
		if bytes.Contains(cmdline, []byte(dir)) || bytes.Contains(environ, []byte(dir)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// output runs banger in a scenario's environment.
func output(ts *testscript.TestScript, args ...string) []byte {
	cmd := exec.Command(filepath.Join(shared.bin, "banger"), args...)
	for _, name := range []string{
		"HOME", "PATH", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "BANGER_GUEST",
	} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	out, err := cmd.Output()
	if err != nil {
		ts.Fatalf("banger %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// vmInfo is the part of `vm show --output json` that scenarios use.
type vmInfo struct {
	State      string `json:"state"`
	BootID     string `json:"boot_id"`
	MonitorPid int    `json:"monitor_pid"`
	VMMPid     int    `json:"vmm_pid"`
}

func show(ts *testscript.TestScript, vm string) vmInfo {
	var infos []vmInfo
	raw := output(ts, "vm", "show", vm, "--output", "json")
	if err := json.Unmarshal(raw, &infos); err != nil {
		var one vmInfo
		ts.Check(json.Unmarshal(raw, &one))
		return one
	}
	return infos[0]
}

// cmdKill9: kill9 daemon | kill9 monitor VM | kill9 vmm VM.
func cmdKill9(ts *testscript.TestScript, _ bool, args []string) {
	var pid int
	switch {
	case len(args) == 1 && args[0] == "daemon":
		pid = daemonPid(ts)
	case len(args) == 2 && args[0] == "monitor":
		pid = show(ts, args[1]).MonitorPid
	case len(args) == 2 && args[0] == "vmm":
		pid = show(ts, args[1]).VMMPid
	default:
		ts.Fatalf("usage: kill9 daemon | kill9 monitor VM | kill9 vmm VM")
	}
	if pid <= 1 {
		ts.Fatalf("no process to kill: pid %d", pid)
	}
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	deadline := time.Now().Add(10 * time.Second)
	for syscall.Kill(pid, 0) == nil {
		// A killed child of a living process stays a zombie until that waits for it.
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && bytes.Contains(stat, []byte(") Z ")) {
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("process %d does not end", pid)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func daemonPid(ts *testscript.TestScript) int {
	var st struct {
		Pid int `json:"pid"`
	}
	ts.Check(json.Unmarshal(output(ts, "daemon", "status", "--output", "json"), &st))
	return st.Pid
}

// cmdBootID: boot-id VM NAME sets the variable NAME to the boot id of the VM.
func cmdBootID(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: boot-id VM VARIABLE")
	}
	id := show(ts, args[0]).BootID
	if id == "" {
		ts.Fatalf("VM %s has no boot id", args[0])
	}
	ts.Setenv(args[1], id)
}

// cmdEventually: eventually SECONDS COMMAND... runs a shell command until it succeeds.
func cmdEventually(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: eventually SECONDS COMMAND")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	for {
		err := ts.Exec("sh", "-c", strings.Join(args[1:], " "))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v after %d s", err, seconds)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// cmdNoLeaks: no VM, no process but the daemon, no file of a VM is left.
func cmdNoLeaks(ts *testscript.TestScript, _ bool, _ []string) {
	if vms := strings.TrimSpace(string(output(ts, "vm", "list", "-q"))); vms != "" {
		ts.Fatalf("VMs are left: %s", vms)
	}
	for _, dir := range []string{ts.Getenv("XDG_STATE_HOME") + "/banger/vms", ts.Getenv("XDG_RUNTIME_DIR") + "/banger/vms"} {
		entries, err := os.ReadDir(dir)
		ts.Check(err)
		for _, e := range entries {
			ts.Fatalf("left in %s: %s", dir, e.Name())
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		var left []string
		for _, pid := range processesOf(ts.Getenv("WORK")) {
			cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			words := strings.Join(strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"), " ")
			if words != "" && !strings.Contains(words, "daemon run") {
				left = append(left, words)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("processes are left:\n%s", strings.Join(left, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
