package hypervisortest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/hypervisor"
)

// holdings is what this process holds: descriptors and children.
type holdings map[string]bool

func held(t *testing.T) holdings {
	t.Helper()
	h := holdings{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil || strings.HasPrefix(target, "/proc/") { // the directory that is being read
			continue
		}
		h["descriptor "+fd.Name()+" "+target] = true
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		text, _ := os.ReadFile(path) // a process that has ended meanwhile has none
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) { // its parent
			h["child "+filepath.Base(filepath.Dir(path))] = true
		}
	}
	return h
}

// wantNothingNew fails if this process holds what it did not hold before.
func wantNothingNew(t *testing.T, before holdings) {
	t.Helper()
	var fresh []string
	for range 20 { // what a finished goroutine drops takes a moment
		fresh = fresh[:0]
		for _, what := range slices.Sorted(maps.Keys(held(t))) {
			if !before[what] {
				fresh = append(fresh, what)
			}
		}
		if len(fresh) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind: %s", strings.Join(fresh, ", "))
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind in the VMM's directory: %s", e.Name())
	}
}

func (s Suite) leavesNothingBehind(t *testing.T) {
	warm := s.boot(t, s.Machine(t)) // the runtime opens descriptors of its own at first use
	warm.end()
	before := held(t)
	for _, how := range []string{"shutdown", "reboot", "kill"} {
		m := s.Machine(t)
		m.Disks = []hypervisor.Disk{{Serial: "work", Path: newDisk(t, "x\n")}}
		g := s.boot(t, m)
		running := held(t)
		if !running["child "+strconv.Itoa(g.Pid())] {
			t.Fatalf("the VMM %d is not seen among the children: the check is blind", g.Pid())
		}
		if how == "kill" {
			g.Kill()
		} else {
			g.tell("%s", how)
			g.wait()
		}
		g.end()
		wantNothingNew(t, before)
		wantEmpty(t, m.Dir)
	}
}

func (s Suite) failedBoot(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "nowhere")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	disk := func(d hypervisor.Disk) func(*hypervisor.Machine) {
		return func(m *hypervisor.Machine) { m.Disks = []hypervisor.Disk{d} }
	}
	good := newDisk(t, "x\n")
	before := held(t)
	for _, c := range []struct {
		name string
		ctx  context.Context //nolint:containedctx // a table of calls
		mend func(*hypervisor.Machine)
		want fault.Kind
		says string
	}{
		{"cancelled", cancelled, func(*hypervisor.Machine) {}, fault.Canceled, ""},
		{"no kernel", t.Context(), func(m *hypervisor.Machine) { m.Kernel = gone }, fault.NotFound, gone},
		{"no initramfs", t.Context(), func(m *hypervisor.Machine) { m.Initramfs = gone }, fault.NotFound, gone},
		{"no disk", t.Context(), disk(hypervisor.Disk{Serial: "work", Path: gone}), fault.NotFound, gone},
		{"disk is a directory", t.Context(), disk(hypervisor.Disk{Serial: "work", Path: filepath.Dir(good)}), fault.Invalid, "work"},
		{"bad serial", t.Context(), disk(hypervisor.Disk{Serial: "a,b", Path: good}), fault.Invalid, "a,b"},
		{"no memory", t.Context(), func(m *hypervisor.Machine) { m.Memory = 0 }, fault.Invalid, "memory"},
		{"no vCPU", t.Context(), func(m *hypervisor.Machine) { m.VCPUs = 0 }, fault.Invalid, "vCPU"},
		{"too many vCPUs", t.Context(), func(m *hypervisor.Machine) { m.VCPUs = 1 << 20 }, fault.Invalid, "vCPU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := s.Machine(t)
			c.mend(&m)
			if m.VCPUs > 1 && s.Backend(t).Name() == "fake" {
				t.Skip("the fake backend gives any number of vCPUs")
			}
			vmm, err := s.Backend(t).Boot(c.ctx, m)
			if err == nil {
				vmm.Kill()
			}
			if !fault.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Boot() = %v, want a fault of kind %s that says %q", err, c.want, c.says)
			}
			wantEmpty(t, m.Dir)
		})
	}
	wantNothingNew(t, before)
}

// envParent tells a re-executed test that it is the parent to be killed.
const envParent = "HYPERVISORTEST_PARENT"

// parentDeath re-executes the test as a parent of a VMM, kills that, and wants the VMM to be gone.
func (s Suite) parentDeath(t *testing.T) {
	if os.Getenv(envParent) != "" {
		s.beParent(t)
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // only read
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	parent, err := hostexec.Start(hostexec.Cmd{
		Path: os.Args[0], Args: []string{"-test.run", pattern, "-test.timeout", "5m"},
		Env:    append(os.Environ(), envParent+"=1", "TMPDIR="+t.TempDir()), // it has no time to clean up
		Stdout: in, Stderr: in,
	})
	_ = in.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		parent.Kill()
		<-parent.Done()
	}()
	pid := readPid(t, out, s.Answer+time.Minute)
	if !alive(pid) {
		t.Fatalf("the VMM %d died before its parent", pid)
	}
	if err := syscall.Kill(parent.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-parent.Done()
	for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the VMM %d lives on after its parent was killed", pid)
		}
	}
}

// beParent boots a machine, says its pid, and waits to be killed.
func (s Suite) beParent(t *testing.T) {
	g := s.boot(t, s.Machine(t))
	runtime.GC()                      // nothing may hang on an object that only looks unused
	fmt.Printf("\npid %d\n", g.Pid()) //nolint:forbidigo // readPid looks for it there
	<-g.Done()
	t.Fatal("the VMM ended before its parent")
}

// readPid returns the number of the line "pid N".
func readPid(t *testing.T, r *os.File, within time.Duration) int {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(io.TeeReader(r, &said))
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "pid "); ok {
			pid, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("the parent ended without a pid: %v\n%s", lines.Err(), said.String())
	return 0
}

// alive reports whether a process exists and is more than an entry that nobody has waited for yet.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
