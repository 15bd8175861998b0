package monitorlink_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/monitorlink"
)

// The roles that the test binary plays when it is started as a monitor.
const (
	roleVariable = "MONITORLINK_TEST_ROLE"
	roleSilent   = "silent"   // hold the lock, leave an identity, answer nobody
	roleNameless = "nameless" // as silent, without an identity
	roleAnswer   = "answer"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" && len(os.Args) == 2 {
		if err := beMonitor(role, os.Args[1]); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beMonitor(role, state string) error {
	dirs := monitorlink.Dirs{State: state}
	launch, err := dirs.ReadLaunch()
	if err != nil {
		return err
	}
	dirs.Runtime = launch.Machine.Dir
	if err := monitorlink.KeepLock(); err != nil {
		return err
	}
	if role != roleNameless {
		if err := dirs.Identify(); err != nil {
			return err
		}
	}
	ln, err := monitorlink.Listener()
	if err != nil {
		return err
	}
	// Last, for then the test may do to the directory what it likes.
	if err := os.WriteFile(filepath.Join(state, "test.pid"), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	if role == roleSilent || role == roleNameless {
		_, _ = fmt.Fprintln(os.Stderr, "I say nothing")
		time.Sleep(time.Hour)
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		var req monitorlink.Request
		if err := monitorlink.ReadLine(conn, &req); err != nil {
			return err
		}
		if err := serveOne(conn, req); err != nil || req.Op == monitorlink.OpKill {
			return err
		}
	}
}

// serveOne answers the requests of the tests.
func serveOne(conn net.Conn, req monitorlink.Request) error {
	defer conn.Close() //nolint:errcheck // nothing to flush
	switch req.Op {
	case monitorlink.OpPause:
		return monitorlink.WriteLine(conn, monitorlink.Response{Kind: fault.Busy.String(), Message: "not now", Hint: "later"})
	case monitorlink.OpWatch:
		err := monitorlink.WriteLine(conn, monitorlink.Response{})
		for _, p := range []monitorlink.Phase{monitorlink.Booting, monitorlink.Ready} {
			err = errors.Join(err, monitorlink.WriteLine(conn, monitorlink.Status{Phase: p, MonitorPid: os.Getpid()}))
		}
		return err
	case monitorlink.OpSamples:
		err := monitorlink.WriteLine(conn, monitorlink.Response{})
		if req.Samples.History {
			err = errors.Join(err, monitorlink.WriteLine(conn, monitorlink.Sample{At: 1}))
		}
		if !req.Samples.Follow {
			return errors.Join(err, monitorlink.WriteLine(conn, monitorlink.Sample{At: 2, CPUPercent: 1.5, HasGuest: true, Processes: 3}))
		}
		_, werr := conn.Write([]byte("no sample\n{\"At\":"))
		return errors.Join(err, werr)
	case monitorlink.OpStream:
		// What a child of a monitor inherits, with other files in the first descriptors.
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		out, err := hostexec.Output(context.Background(), hostexec.Cmd{
			Path: "sh", Args: []string{"-c", "ls -l /proc/self/fd"}, Files: []*os.File{null, null, null},
		})
		if err != nil {
			return err
		}
		if err := monitorlink.WriteLine(conn, monitorlink.Response{}); err != nil {
			return err
		}
		_, err = conn.Write(out)
		return err
	default:
		return monitorlink.WriteLine(conn, monitorlink.Response{})
	}
}

// newDirs returns directories with a path short enough for a socket.
func newDirs(t *testing.T) monitorlink.Dirs {
	t.Helper()
	root, err := os.MkdirTemp("", "ml") //nolint:usetesting // the test's name would make the path of a socket too long
	if err != nil {
		t.Fatal(err)
	}
	d := monitorlink.Dirs{State: filepath.Join(root, "s"), Runtime: filepath.Join(root, "r")}
	for _, dir := range []string{d.State, d.Runtime} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	return d
}

// start starts the test binary as a monitor in a role. It is killed at the end of the test.
func start(t *testing.T, d monitorlink.Dirs, role string) {
	t.Helper()
	l := monitorlink.Launch{ID: "0123456789ab", Name: "a"}
	l.Machine.Dir = d.Runtime
	// The program env sets the role for this one only: tests run side by side.
	err := monitorlink.Start("env", []string{roleVariable + "=" + role, os.Args[0]}, d, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for alive := true; alive; alive, _ = d.Alive() {
			if pid := pidOf(d); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
}

// pidOf reads what a monitor in a role has left for its test, whatever its identity record says.
func pidOf(d monitorlink.Dirs) int {
	b, _ := os.ReadFile(filepath.Join(d.State, "test.pid"))
	pid, _ := strconv.Atoi(string(b))
	return pid
}

func mustAlive(t *testing.T, d monitorlink.Dirs, want bool) {
	t.Helper()
	if got, err := d.Alive(); err != nil || got != want {
		t.Errorf("Alive = %t, %v; want %t", got, err, want)
	}
}

func TestLineEndsAtNewline(t *testing.T) {
	t.Parallel()
	r := strings.NewReader("{\"Op\":\"watch\"}\nraw bytes")
	var req monitorlink.Request
	if err := monitorlink.ReadLine(iotest.HalfReader(r), &req); err != nil || req.Op != monitorlink.OpWatch {
		t.Fatalf("ReadLine = %+v, %v", req, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "raw bytes" {
		t.Errorf("after the line there is %q", rest)
	}
}

func TestBadLines(t *testing.T) {
	t.Parallel()
	endless := &countingReader{}
	var v monitorlink.Request
	if err := monitorlink.ReadLine(endless, &v); !fault.Is(err, fault.Corrupt) {
		t.Errorf("an endless line: %v, want Corrupt", err)
	}
	if endless.n > 2<<20 {
		t.Errorf("%d bytes were read of an endless line", endless.n)
	}
	if err := monitorlink.ReadLine(strings.NewReader("{\n"), &v); !fault.Is(err, fault.Corrupt) {
		t.Errorf("no JSON: %v, want Corrupt", err)
	}
	for _, cut := range []string{"", `{"Op":"watch"}`} {
		if err := monitorlink.ReadLine(strings.NewReader(cut), &v); !errors.Is(err, io.EOF) {
			t.Errorf("%q without an end: %v, want EOF", cut, err)
		}
	}
}

type countingReader struct{ n int }

func (c *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	c.n += len(p)
	return len(p), nil
}

func FuzzReadLine(f *testing.F) {
	for _, s := range []string{"", "\n", "{}\nrest", `{"Op":"kill"}` + "\n", `{"Kind":7}` + "\n\n", "\xff\x00\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var res monitorlink.Response
		err := monitorlink.ReadLine(r, &res)
		line, rest, whole := bytes.Cut(in, []byte("\n"))
		if whole && r.Len() != len(rest) {
			t.Errorf("%d bytes are left of %q", r.Len(), rest)
		}
		if err == nil && (!whole || !json.Valid(line)) {
			t.Errorf("%q was taken", in)
		}
	})
}

func TestWriteJSONIsWholeOrNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "x.json")
	if err := monitorlink.WriteJSON(path, map[string]int{"a": 1}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := monitorlink.WriteJSON(path, make(chan int)); err == nil {
		t.Error("a channel was encoded")
	}
	if b, _ := os.ReadFile(path); string(b) != `{"a":1}` {
		t.Errorf("after a failed write the file holds %q", b)
	}
	// A reader beside many writes sees one value or the other, never a part.
	long := strings.Repeat("x", 100_000)
	done := make(chan error)
	go func() {
		var err error
		for range 50 {
			err = errors.Join(err, monitorlink.WriteJSON(path, long), monitorlink.WriteJSON(path, "y"))
		}
		done <- err
	}()
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			running = false
		default:
		}
		if b, err := os.ReadFile(path); err != nil || !json.Valid(b) {
			t.Fatalf("half a file: %d bytes, %v", len(b), err)
		}
	}
	if err := monitorlink.WriteJSON(filepath.Join(dir, "no", "x"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestExitRecord(t *testing.T) {
	t.Parallel()
	d := newDirs(t)
	if e := d.ReadExit(); e.Cause != monitorlink.MonitorLost || e.Detail == "" {
		t.Errorf("without a record: %+v", e)
	}
	want := monitorlink.Exit{Cause: "killed", Detail: "d", Hint: "h", ConsoleTail: "c", At: time.Now().UTC()}
	if err := d.WriteExit(want); err != nil {
		t.Fatal(err)
	}
	if got := d.ReadExit(); got != want && got.At.Equal(want.At) {
		t.Errorf("ReadExit = %+v, want %+v", got, want)
	}
	for _, broken := range []string{"", "{", "{}", "[]"} {
		if err := os.WriteFile(filepath.Join(d.State, "exit.json"), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if e := d.ReadExit(); e.Cause != monitorlink.MonitorLost {
			t.Errorf("record %q: %+v", broken, e)
		}
	}
}

func TestStartHandsOverLockAndSocket(t *testing.T) {
	t.Parallel()
	d := newDirs(t)
	mustAlive(t, d, false)
	if err := d.WriteExit(monitorlink.Exit{Cause: "killed"}); err != nil {
		t.Fatal(err)
	}
	start(t, d, roleAnswer)
	mustAlive(t, d, true) // at once: there is no moment at which nobody has the lock
	if e := d.ReadExit(); e.Cause != monitorlink.MonitorLost {
		t.Errorf("the old exit record is still there: %+v", e)
	}
	if l, err := d.ReadLaunch(); err != nil || l.Name != "a" {
		t.Errorf("launch record: %+v, %v", l, err)
	}
	if info, err := os.Stat(d.Socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := monitorlink.Start("true", nil, d, monitorlink.Launch{}); !fault.Is(err, fault.Busy) {
		t.Errorf("a second monitor: %v, want Busy", err)
	}

	c := monitorlink.NewClient(d.Socket())
	w, err := c.Watch(t.Context()) // waits in the backlog until the monitor is up
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // read only
	for _, want := range []monitorlink.Phase{monitorlink.Booting, monitorlink.Ready} {
		if st, err := w.Next(); err != nil || st.Phase != want || st.MonitorPid == os.Getpid() {
			t.Errorf("Next = %+v, %v; want %s", st, err, want)
		}
	}
	if _, err := w.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if err := c.Pause(t.Context()); !fault.Is(err, fault.Busy) || fault.HintOf(err) != "later" || err.Error() != "not now" {
		t.Errorf("Pause = %v (hint %q)", err, fault.HintOf(err))
	}
	if err := c.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	waitDead(t, d)
	if err := c.Resume(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody listens: %v, want Unavailable", err)
	}
}

// waitDead waits until nobody holds the lock.
func waitDead(t *testing.T, d monitorlink.Dirs) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if alive, err := d.Alive(); err != nil {
			t.Fatal(err)
		} else if !alive {
			return
		}
	}
	t.Fatal("the lock is still held")
}

// TestChildrenOfTheMonitorKeepTheLock is about the VMM: it must hold the lock although it gets files of its own.
func TestChildrenOfTheMonitorKeepTheLock(t *testing.T) {
	t.Parallel()
	d := newDirs(t)
	start(t, d, roleAnswer)
	conn, err := monitorlink.NewClient(d.Socket()).OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // read only
	files, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(files), "monitor.lock") {
		t.Errorf("a child has no lock: %v\n%s", err, files)
	}
	if strings.Contains(string(files), "socket:") {
		t.Errorf("a child has a socket of the monitor:\n%s", files)
	}
}

func TestClientGivesUp(t *testing.T) {
	t.Parallel()
	d := newDirs(t)
	start(t, d, roleSilent)
	c := monitorlink.NewClient(d.Socket())
	why := errors.New("no time")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, why)
	defer cancel()
	for _, when := range []string{"under way", "before"} {
		if err := c.Pause(ctx); !errors.Is(err, why) {
			t.Errorf("%s: %v, want the context's cause", when, err)
		}
	}
}

func TestKillMonitor(t *testing.T) {
	t.Parallel()
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		d := newDirs(t)
		start(t, d, roleSilent)
		if err := d.KillMonitor(20 * time.Second); err != nil {
			t.Error(err)
		}
		mustAlive(t, d, false)
		if log := d.ReadLog(); log != "I say nothing" && log != "" { // it may have been too early for words
			t.Errorf("log: %q", log)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		t.Parallel()
		d := newDirs(t)
		if err := d.KillMonitor(0); err != nil {
			t.Error(err)
		}
		if err := d.KillMonitor(0); err != nil {
			t.Error(err)
		}
	})
	// A record of a process that is not the monitor: the process with the recorded pid is another, and is left alone; the
	// one that has the lock is found by that.
	t.Run("reused pid", func(t *testing.T) {
		t.Parallel()
		d := newDirs(t)
		start(t, d, roleNameless)
		bystander, err := hostexec.Start(hostexec.Cmd{Path: "sleep", Args: []string{"1000"}})
		if err != nil {
			t.Fatal(err)
		}
		defer bystander.Kill()
		record := fmt.Appendf(nil, `{"Pid":%d,"Start":1}`, bystander.Pid())
		if err := os.WriteFile(filepath.Join(d.State, "monitor.json"), record, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.KillMonitor(20 * time.Second); err != nil {
			t.Error(err)
		}
		select {
		case <-bystander.Done():
			t.Error("the process that merely has the pid was killed")
		default:
		}
		mustAlive(t, d, false)
	})
	// The lock is held by the one that must not be killed: the caller.
	t.Run("cannot be ended", func(t *testing.T) {
		t.Parallel()
		d := newDirs(t)
		lock, err := os.Create(filepath.Join(d.State, "monitor.lock"))
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close() //nolint:errcheck // test
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		err = d.KillMonitor(100 * time.Millisecond)
		if !fault.Is(err, fault.Timeout) || !strings.Contains(fault.HintOf(err), "monitor.lock") {
			t.Errorf("KillMonitor = %v (hint %q), want Timeout", err, fault.HintOf(err))
		}
	})
	// The lock is free, the record names a living process: nothing to kill.
	t.Run("record without lock", func(t *testing.T) {
		t.Parallel()
		d := newDirs(t)
		if err := d.Identify(); err != nil { // it names this process
			t.Fatal(err)
		}
		if err := d.KillMonitor(time.Second); err != nil {
			t.Error(err)
		}
	})
	t.Run("absurd pids", func(t *testing.T) {
		t.Parallel()
		for _, record := range []string{`{"Pid":-1}`, `{"Pid":0}`, `{"Pid":1}`, `{"Pid":4194305}`, `x`, ``} {
			d := newDirs(t)
			start(t, d, roleNameless)
			if err := os.WriteFile(filepath.Join(d.State, "monitor.json"), []byte(record), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := d.KillMonitor(20 * time.Second); err != nil {
				t.Errorf("record %s: %v", record, err)
			}
			mustAlive(t, d, false)
		}
	})
}
