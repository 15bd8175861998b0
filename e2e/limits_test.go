//go:build vm

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"banger/internal/cgroup"
)

// cgroupsWork reports whether this host enforces weights of CPUs.
func cgroupsWork() bool {
	place, _ := cgroup.Find()
	_, ok := place[cgroup.CPU]
	return ok
}

// cmdGroup: group VM WEIGHT checks the cgroup of a VM: its CPU weight, and that the VMM is in it. ! group: there is none.
func cmdGroup(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] group VM WEIGHT")
	}
	var infos []struct {
		ID     string `json:"id"`
		VMMPid int    `json:"vmm_pid"`
	}
	raw := output(ts, "vm", "list", "--output", "json")
	ts.Check(json.Unmarshal(raw, &infos))
	weight, err := strconv.Atoi(args[1])
	ts.Check(err)
	place, _ := cgroup.Find()
	pid := show(ts, args[0]).VMMPid
	for _, info := range infos {
		for c, parent := range place {
			dir := filepath.Join(parent.Dir, "banger-"+info.ID)
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if neg {
				if err == nil {
					ts.Fatalf("%s is left", dir)
				}
				continue
			}
			ts.Check(err)
			if !strings.Contains("\n"+string(procs), "\n"+strconv.Itoa(pid)+"\n") {
				ts.Fatalf("the VMM %d is not in %s: %q", pid, dir, procs)
			}
			if c == cgroup.CPU {
				name, want := "cpu.weight", args[1]
				if parent.Version == 1 {
					name, want = "cpu.shares", strconv.Itoa(weight*1024/100)
				}
				got, err := os.ReadFile(filepath.Join(dir, name))
				ts.Check(err)
				if strings.TrimSpace(string(got)) != want {
					ts.Fatalf("%s of %s is %s, want %s", name, dir, got, want)
				}
			}
		}
	}
}
