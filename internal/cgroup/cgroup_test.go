package cgroup

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A child of the test enters a group, says so, and stays until its standard input ends.
const enterVariable = "CGROUP_TEST_ENTER"

func TestMain(m *testing.M) {
	text := os.Getenv(enterVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var g Group
	err := json.Unmarshal([]byte(text), &g)
	if err == nil {
		err = g.Enter(testLimits())
	}
	fmt.Println("entered", err)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

func testLimits() Limits { return Limits{CPUWeight: 300, IOWeight: 50, Memory: 1 << 30, Pids: 100} }

// The whole of it on this host's own hierarchies.
func TestGroupOfThisHost(t *testing.T) {
	t.Parallel()
	place, missing := Find()
	t.Logf("%s; missing: %v", place, missing)
	if len(place) == 0 {
		t.Skipf("no cgroup can be made here: %v", missing)
	}
	g := place.Group(fmt.Sprintf("test-%d", os.Getpid()))
	for range 2 { // a group of the same name may be made again
		enterAndRemove(t, g)
	}
	if err := g.Remove(0); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
}

func enterAndRemove(t *testing.T, g Group) {
	t.Helper()
	text, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), os.Args[0]) // this test
	child.Env = append(os.Environ(), enterVariable+"="+string(text))
	stdin, err1 := child.StdinPipe()
	stdout, err2 := child.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Remove(5 * time.Second) })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "entered <nil>\n" {
		t.Errorf("the child says %q, %v", line, err)
	}
	for _, dir := range g.dirs() {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || !slices.Contains(strings.Fields(string(procs)), fmt.Sprint(child.Process.Pid)) {
			t.Errorf("in %s there are %q, %v, want %d", dir, procs, err, child.Process.Pid)
		}
	}
	for c, value := range map[Controller]int64{CPU: 300, Memory: 1 << 30, Pids: 100} {
		parent, has := g.Parents[c]
		if !has {
			continue
		}
		name, want := knob(c, parent.Version, value)
		if got, err := os.ReadFile(filepath.Join(parent.Dir, g.Name, name)); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, %v, want %s", name, got, err, want)
		}
	}
	if err := g.Remove(0); err == nil {
		t.Error("a group with a process in it could be removed")
	}
	_ = stdin.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
	if err := g.Remove(5 * time.Second); err != nil {
		t.Errorf("remove: %v", err)
	}
	for _, dir := range g.dirs() {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

func TestKnobs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		controller Controller
		version    int
		value      int64
		name, text string
	}{
		{CPU, 2, 1, "cpu.weight", "1"},
		{CPU, 2, 10000, "cpu.weight", "10000"},
		{CPU, 1, 100, "cpu.shares", "1024"},
		{CPU, 1, 1, "cpu.shares", "10"},
		{CPU, 1, 10000, "cpu.shares", "102400"},
		{IO, 2, 70, "io.weight", "default 70"},
		{IO, 1, 10000, "blkio.bfq.weight", "1000"},
		{Memory, 2, 1 << 30, "memory.max", "1073741824"},
		{Memory, 1, 1 << 30, "memory.limit_in_bytes", "1073741824"},
		{Pids, 1, 7, "pids.max", "7"},
		{Pids, 2, 7, "pids.max", "7"},
	} {
		if name, text := knob(c.controller, c.version, c.value); name != c.name || text != c.text {
			t.Errorf("%s v%d %d: %s = %q, want %s = %q", c.controller, c.version, c.value, name, text, c.name, c.text)
		}
	}
}

// Set writes what is asked for, where it can be had, and makes no files.
func TestSet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g := Place{CPU: {dir, 2}, Memory: {dir, 2}}.Group("0123456789ab")
	own := filepath.Join(dir, "banger-0123456789ab")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(own, "cpu.weight"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Set(Limits{CPUWeight: 42, IOWeight: 7}); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(own, "cpu.weight")); string(got) != "42" {
		t.Errorf("cpu.weight is %q, %v", got, err)
	}
	if err := g.Set(Limits{Memory: 1}); err == nil {
		t.Error("a limit without a file could be set")
	}
	if !g.Has(CPU) || g.Has(IO) || (Group{}).Has(CPU) {
		t.Error("Has does not tell what the group has")
	}
	if err := (Group{}).Enter(testLimits()); err != nil {
		t.Errorf("no group: %v", err)
	}
}

func TestPlaces(t *testing.T) {
	t.Parallel()
	mounts := parseMounts(strings.NewReader(`21 1 0:20 / /sys rw - sysfs sysfs rw
30 21 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 /docker/ab /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/with\040space rw - cgroup cgroup rw,name=systemd
a line that is none
`))
	own := parseOwn(strings.NewReader("4:cpu,cpuacct:/docker/ab/c\n1:name=systemd:/x\n0::/user.slice/a:b\nodd\n9:pids:relative\n"))
	if len(mounts) != 3 || mounts[2].point != "/sys/fs/cgroup/with space" {
		t.Fatalf("mounts %+v", mounts)
	}
	for _, c := range []struct {
		mount      int
		controller Controller
		want       string
		ok         bool
	}{
		{0, Memory, "/root/sys/fs/cgroup/unified/user.slice/a:b", true},
		{1, CPU, "/root/sys/fs/cgroup/cpu,cpuacct/c", true},
	} {
		path, isIn := own[mounts[c.mount].hierarchy(c.controller)]
		got, ok := mounts[c.mount].directory("/root", path)
		if !isIn || ok != c.ok || got != c.want {
			t.Errorf("%s: %q, %t, %t, want %q", c.controller, got, isIn, ok, c.want)
		}
	}
	if _, isIn := own[mounts[1].hierarchy(IO)]; isIn {
		t.Error("a hierarchy without the controller counts")
	}
	for _, path := range []string{"/docker", "/elsewhere", "/../x"} {
		if got, ok := mounts[1].directory("", path); ok {
			t.Errorf("the cgroup %s, which is not visible, is taken for %s", path, got)
		}
	}
}

// What cannot be had has a reason, and nothing is left of the trials.
func TestFindWithoutCgroups(t *testing.T) {
	t.Parallel()
	proc, root := t.TempDir(), t.TempDir()
	if place, missing := find(proc, root); len(place) > 0 || len(missing) != 4 {
		t.Errorf("without procfs: %v, %v", place, missing)
	}
	own := filepath.Join(root, "cg", "own")
	for name, text := range map[string]string{
		filepath.Join(proc, "mountinfo"):         "1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n",
		filepath.Join(proc, "cgroup"):            "0::/own\n",
		filepath.Join(own, "cgroup.controllers"): "cpu memory\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	place, missing := find(proc, root) // plain directories: a group in them has no limits
	if len(place) > 0 || !strings.Contains(missing[CPU], "cpu.weight") || !strings.Contains(missing[IO], "no controller io") {
		t.Errorf("in plain directories: %v, %v", place, missing)
	}
	for _, dir := range []string{own, filepath.Dir(own)} {
		if left, err := filepath.Glob(filepath.Join(dir, prefix+"*")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func FuzzProcfs(f *testing.F) {
	f.Add("1 1 0:1 / /cg rw - cgroup2 cgroup2 rw\n", "0::/own\n")
	f.Add("1 1 0:1 / /cg rw - cgroup cgroup rw,cpu\n", "3:cpu:/../..\n")
	f.Fuzz(func(t *testing.T, mountinfo, groups string) {
		own := parseOwn(strings.NewReader(groups))
		for _, m := range parseMounts(strings.NewReader(mountinfo)) {
			for _, path := range own {
				if dir, ok := m.directory("/root", path); ok && strings.Contains(m.point, "..") == false && !strings.HasPrefix(dir, "/root") {
					t.Errorf("%q of %+v leads to %s", path, m, dir)
				}
			}
		}
	})
}
