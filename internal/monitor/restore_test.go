//go:build fakevmm

package monitor

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

const restoredBootID = "11111111-2222-4333-8444-555555555555"

// buildAgent builds the agent that a fake VM runs as a process.
func buildAgent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, "banger/cmd/banger-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest agent: %v\n%s", err, out)
	}
	return path
}

// started is a monitor that runs in this process.
type started struct {
	client *monitorlink.Client
	dirs   monitorlink.Dirs
	ended  chan struct{}
}

// run runs the monitor of a VM with one disk, until the test's end.
func run(t *testing.T, agent string, change func(*monitorlink.Launch)) *started {
	t.Helper()
	root, err := os.MkdirTemp("", "mo") //nolint:usetesting // the test's name would make the path of a socket too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	host, err := json.Marshal(agent)
	if err != nil {
		t.Fatal(err)
	}
	empty, disk := filepath.Join(root, "empty"), filepath.Join(root, "disk")
	for path, content := range map[string]string{empty: "", disk: "on the disk"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := monitorlink.Launch{
		ID: "0123456789ab", Name: "a", Backend: "fake", Host: host, BootTimeout: time.Minute,
		Machine: hypervisor.Machine{
			ID: "0123456789ab", Name: "a", VCPUs: 1, Memory: 64 << 20, Kernel: empty, Initramfs: empty, Dir: root,
			Disks: []hypervisor.Disk{{Serial: "work", Path: disk}},
		},
	}
	if change != nil {
		change(&l)
	}
	s := &started{dirs: monitorlink.Dirs{State: root, Runtime: root}, ended: make(chan struct{})}
	s.client = monitorlink.NewClient(s.dirs.Socket())
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.dirs.Socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(s.ended)
		_ = New(s.dirs, l, ln, slog.New(slog.DiscardHandler)).Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-s.ended
	})
	return s
}

// ready waits for the guest and returns the status.
func (s *started) ready(t *testing.T) monitorlink.Status {
	t.Helper()
	w, err := s.client.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // nothing to flush
	for {
		st, err := w.Next()
		if err != nil || st.Phase == monitorlink.Ended {
			t.Fatalf("the VM does not come up: %v, %+v", err, st.Exit)
		}
		if st.Phase == monitorlink.Ready {
			return st
		}
	}
}

// TestSaveAndRestore saves a VM, restores it twice, and looks that both and the original go on.
func TestSaveAndRestore(t *testing.T) {
	t.Parallel()
	agent, to := buildAgent(t), t.TempDir()
	original := run(t, agent, nil)
	before := original.ready(t)
	spec := monitorlink.SaveSpec{
		Snapshot: hypervisor.Snapshot{Memory: filepath.Join(to, "memory"), State: filepath.Join(to, "state")},
		Disks:    map[string]string{"work": filepath.Join(to, "work")},
	}
	if saved, err := original.client.Save(t.Context(), spec); err != nil || saved.Paused <= 0 {
		t.Fatalf("Save = %+v, %v", saved, err)
	}
	if got, err := os.ReadFile(spec.Disks["work"]); string(got) != "on the disk" {
		t.Errorf("the copy of the disk holds %q, %v", got, err)
	}
	if _, err := original.client.Save(t.Context(), spec); err == nil || len(names(t, to)) != 3 {
		t.Errorf("a second save to the same files = %v, and left %v", err, names(t, to))
	}
	restore := func(l *monitorlink.Launch) {
		l.Restore = &monitorlink.Restore{
			Snapshot: spec.Snapshot, Hostname: "copy", MachineID: "0123456789abcdef0123456789abcdef", BootID: restoredBootID,
		}
	}
	for _, s := range []*started{original, run(t, agent, restore), run(t, agent, restore)} {
		st := s.ready(t)
		if err := guestlink.NewClient(s.client).Ping(t.Context()); err != nil {
			t.Errorf("Ping = %v", err)
		}
		if s == original {
			continue
		}
		stages := []string{}
		for _, stage := range st.Stages {
			stages = append(stages, stage.Name)
		}
		if st.BootID != restoredBootID || st.BootID == before.BootID || !slices.Equal(stages, []string{"vmm", "guest"}) {
			t.Errorf("a restored VM has the boot id %s and the stages %v", st.BootID, stages)
		}
		if st.Paused {
			t.Error("a restored VM is paused")
		}
	}
}

// TestFailedRestore: the daemon must learn why, because some of the reasons call for a boot.
func TestFailedRestore(t *testing.T) {
	t.Parallel()
	agent, dir := buildAgent(t), t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		state string
		want  fault.Kind
	}{"damaged": {bad, fault.Corrupt}, "missing": {filepath.Join(dir, "none"), fault.NotFound}} {
		s := run(t, agent, func(l *monitorlink.Launch) {
			l.Restore = &monitorlink.Restore{Snapshot: hypervisor.Snapshot{Memory: bad, State: c.state}, BootID: restoredBootID}
		})
		<-s.ended
		exit := s.dirs.ReadExit()
		if exit.Cause != monitorlink.RestoreFailed || fault.ParseKind(exit.Kind) != c.want || exit.Detail == "" {
			t.Errorf("%s: exit = %+v, want cause %s and kind %s", name, exit, monitorlink.RestoreFailed, c.want)
		}
	}
	// The control: a boot that fails is no failed restore.
	s := run(t, "/no/such/agent", nil)
	<-s.ended
	if exit := s.dirs.ReadExit(); exit.Cause != monitorlink.BootFailed {
		t.Errorf("exit = %+v, want cause %s", exit, monitorlink.BootFailed)
	}
}

// A restored guest that does not take its identity must not go on: it would be its original.
func TestRestoreFailsWithoutIdentity(t *testing.T) {
	t.Parallel()
	agent, to := buildAgent(t), t.TempDir()
	original := run(t, agent, nil)
	original.ready(t)
	snapshot := hypervisor.Snapshot{Memory: filepath.Join(to, "memory"), State: filepath.Join(to, "state")}
	if _, err := original.client.Save(t.Context(), monitorlink.SaveSpec{Snapshot: snapshot}); err != nil {
		t.Fatal(err)
	}
	s := run(t, agent, func(l *monitorlink.Launch) {
		l.Restore = &monitorlink.Restore{Snapshot: snapshot, BootID: "no boot id"}
	})
	<-s.ended
	if exit := s.dirs.ReadExit(); exit.Cause != monitorlink.RestoreFailed || fault.ParseKind(exit.Kind) != fault.Invalid {
		t.Errorf("exit = %+v", exit)
	}
}
