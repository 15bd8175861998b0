package monitorlink_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/hostexec"
	"banger/internal/monitorlink"
)

// TestProcesses finds what has a lock open, also when the VM's directory is gone, and nothing else.
func TestProcesses(t *testing.T) {
	t.Parallel()
	d := newDirs(t)
	vms := filepath.Dir(d.State)
	start(t, d, roleSilent)
	// A process that has files of the same names open elsewhere, and other files here.
	other := t.TempDir()
	var files []*os.File
	for _, path := range []string{filepath.Join(other, "monitor.lock"), filepath.Join(vms, "monitor.lock"), filepath.Join(d.State, "launch.json")} {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	bystander, err := hostexec.Start(hostexec.Cmd{Path: "sleep", Args: []string{"1000"}, Files: files})
	if err != nil {
		t.Fatal(err)
	}
	defer bystander.Kill()
	find := func() []monitorlink.Process {
		t.Helper()
		all, err := monitorlink.Processes(vms)
		if err != nil {
			t.Fatal(err)
		}
		for name := range all {
			if name != filepath.Base(d.State) {
				t.Errorf("processes of %s: %+v", name, all[name])
			}
		}
		return all[filepath.Base(d.State)]
	}
	// It is the program env until it has become the monitor.
	for deadline := time.Now().Add(20 * time.Second); pidOf(d) == 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the monitor does not come up")
		}
	}
	got := find()
	if len(got) != 1 || got[0].Pid != pidOf(d) || !strings.Contains(got[0].Command, filepath.Base(os.Args[0])) {
		t.Fatalf("found %+v, want the process %d", got, pidOf(d))
	}
	if err := os.RemoveAll(d.State); err != nil {
		t.Fatal(err)
	}
	if got = find(); len(got) != 1 {
		t.Fatalf("with its directory gone: found %+v", got)
	}
	stranger := got[0]
	stranger.Start++
	if err := stranger.Kill(); err != nil || len(find()) != 1 {
		t.Errorf("a process that merely has the pid: %v, and it is gone", err)
	}
	if err := got[0].Kill(); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(20 * time.Second); len(find()) > 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	select {
	case <-bystander.Done():
		t.Error("a process that has no lock was killed")
	default:
	}
	if _, err := monitorlink.Processes(filepath.Join(vms, "none")); err == nil {
		t.Error("no error for a directory that is not there")
	}
}
