package cli

import (
	"encoding/json"
	"strings"
	"testing"

	bangerv1 "banger/internal/gen/banger/v1"
)

func TestDoctorLeftovers(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{doctor: &bangerv1.DoctorResponse{
		Checks: []*bangerv1.Check{{Name: "leftovers", Result: "fail", Detail: "2 found", Fix: "banger doctor --fix"}},
		Leftovers: []*bangerv1.Leftover{
			{Kind: "directory", Path: "/vms/0123456789ab", Detail: "it belongs to no VM", Mended: true},
			{Kind: "process", Pid: 4711, Detail: "it belongs to no VM: qemu", Error: "no"},
			{Kind: "state", Vm: "a", Detail: "nothing runs", Fix: "banger doctor --fix"},
		},
	}})
	r := b.run("doctor", "--fix")
	for _, row := range [][]string{
		{"directory", "/vms/0123456789ab", "it belongs to no VM", "mended"},
		{"process", "process 4711", "it belongs to no VM: qemu", "not mended: no"},
		{"state", "VM a", "nothing runs", "try: banger doctor --fix"},
	} {
		found := false
		for line := range strings.SplitSeq(r.stdout, "\n") {
			all := true
			for _, cell := range row {
				all = all && strings.Contains(line, cell)
			}
			found = found || all
		}
		if !found {
			t.Errorf("no line with %q in\n%s", row, r.stdout)
		}
	}
	if r.status != 1 {
		t.Errorf("status %d", r.status)
	}
	for _, args := range [][]string{{"doctor", "--json"}, {"doctor", "--output", "json"}} {
		r := b.run(args...)
		var got doctorView
		if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || len(got.Leftovers) != 3 || !got.Leftovers[0].Mended ||
			got.Leftovers[1].Pid != 4711 || got.Leftovers[2].VM != "a" || got.OK {
			t.Errorf("%q: %v\n%s", args, err, r.stdout)
		}
	}
}
