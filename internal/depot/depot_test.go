package depot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/progress"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// thing is something to make: a file.
type thing struct {
	path string
	made atomic.Int32
	make func(ctx context.Context, work string, sink progress.Sink) error
}

func (th *thing) job() Job {
	return Job{
		Key:  "thing",
		Have: func() (bool, error) { _, err := os.Stat(th.path); return err == nil, nil },
		Make: func(ctx context.Context, work string, sink progress.Sink) error {
			th.made.Add(1)
			if th.make != nil {
				if err := th.make(ctx, work, sink); err != nil {
					return err
				}
			}
			tmp := filepath.Join(work, "f")
			return errors.Join(os.WriteFile(tmp, nil, 0o600), os.Rename(tmp, th.path))
		},
	}
}

func TestManyAskOneMakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	th := &thing{path: filepath.Join(dir, "thing")}
	th.make = func(_ context.Context, _ string, sink progress.Sink) error {
		for range 20 {
			sink.Send(progress.Update{Stage: "s"})
			time.Sleep(time.Millisecond)
		}
		return nil
	}
	// Two depots over one directory stand for two processes: only the file lock is between them.
	depots := []*Depot{New(dir, quiet()), New(dir, quiet())}
	var wg sync.WaitGroup
	var heard atomic.Int32
	for i := range 16 {
		wg.Go(func() {
			var once sync.Once
			err := depots[i%2].Do(t.Context(), func(progress.Update) { once.Do(func() { heard.Add(1) }) }, th.job())
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if th.made.Load() != 1 {
		t.Errorf("made %d times", th.made.Load())
	}
	if heard.Load() < 8 {
		t.Errorf("only %d callers heard of it", heard.Load())
	}
	if left, _ := os.ReadDir(filepath.Join(dir, ".work")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLateComerHearsOpenStages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(dir, quiet())
	th := &thing{path: filepath.Join(dir, "thing")}
	begun, goOn := make(chan struct{}), make(chan struct{})
	th.make = func(_ context.Context, _ string, sink progress.Sink) error {
		sink.Stage("over")(nil)
		sink.Send(progress.Update{Stage: "open", Current: 1})
		sink.Send(progress.Update{Stage: "open", Current: 2})
		close(begun)
		<-goOn
		return nil
	}
	first := make(chan error)
	go func() { first <- d.Do(t.Context(), nil, th.job()) }()
	<-begun
	var heard []string
	err := d.Do(t.Context(), func(u progress.Update) {
		if heard = append(heard, fmt.Sprint(u.Stage, u.Current)); len(heard) == 1 {
			close(goOn)
		}
	}, th.job())
	if err = errors.Join(err, <-first); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(heard, " "); got != "open2" {
		t.Errorf("heard %q", got)
	}
}

func TestWaitersMayLeave(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(dir, quiet())
	th := &thing{path: filepath.Join(dir, "thing")}
	begun := make(chan struct{}, 10)
	goOn := make(chan struct{})
	stopped := make(chan struct{})
	th.make = func(ctx context.Context, _ string, _ progress.Sink) error {
		begun <- struct{}{}
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			close(stopped)
			return ctx.Err()
		}
	}
	ctxA, leaveA := context.WithCancel(t.Context())
	ctxB, leaveB := context.WithCancel(t.Context())
	a, b := make(chan error, 1), make(chan error, 1)
	go func() { a <- d.Do(ctxA, nil, th.job()) }()
	<-begun
	joined := make(chan struct{})
	go func() { b <- d.Do(ctxB, func(progress.Update) {}, th.job()) }()
	go func() {
		for {
			d.mu.Lock()
			n := d.flights["thing"].waiting
			d.mu.Unlock()
			if n == 2 {
				close(joined)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	<-joined
	leaveA()
	if err := <-a; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	select {
	case <-stopped:
		t.Fatal("the work ended although somebody waits")
	case <-time.After(20 * time.Millisecond):
	}
	leaveB()
	if err := <-b; !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	select {
	case <-stopped:
	default:
		t.Error("the last waiter left before the work had ended")
	}
	close(goOn)
	if err := d.Do(t.Context(), nil, th.job()); err != nil {
		t.Errorf("after an abandoned attempt: %v", err)
	}
}

func TestFailureIsToldAndNotKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := New(dir, quiet())
	th := &thing{path: filepath.Join(dir, "thing")}
	fail := errors.New("no luck")
	th.make = func(_ context.Context, work string, _ progress.Sink) error {
		return errors.Join(fail, os.WriteFile(filepath.Join(work, "half"), nil, 0o600))
	}
	if err := d.Do(t.Context(), nil, th.job()); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".work", "thing")); !os.IsNotExist(err) {
		t.Error("the working directory is still there")
	}
	th.make = nil
	if err := d.Do(t.Context(), nil, th.job()); err != nil {
		t.Error(err)
	}
}

// hold takes a key's lock as another process would.
func hold(t *testing.T, dir, key string) *os.File {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, ".locks"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, ".locks", key))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAnotherProcessMakesIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	th := &thing{path: filepath.Join(dir, "thing")}
	other := hold(t, dir, "thing")
	told := false
	err := New(dir, quiet()).Do(t.Context(), func(u progress.Update) {
		if !told && strings.Contains(u.Detail, "another process") {
			told = true
			if err := os.WriteFile(th.path, nil, 0o600); err != nil {
				t.Error(err)
			}
			_ = other.Close()
		}
	}, th.job())
	if err != nil || !told || th.made.Load() != 0 {
		t.Errorf("err %v, told %v, made %d", err, told, th.made.Load())
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"dead", "busy"} {
		if err := os.MkdirAll(filepath.Join(dir, ".work", name, "half"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	defer hold(t, dir, "busy").Close() //nolint:errcheck // nothing to flush
	if err := New(dir, quiet()).Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".work", "dead")); !os.IsNotExist(err) {
		t.Error("what a dead process left is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, ".work", "busy", "half")); err != nil {
		t.Error("the work of a living process is gone")
	}
	if err := New(filepath.Join(dir, "none"), quiet()).Sweep(t.Context()); err != nil {
		t.Errorf("no directory: %v", err)
	}
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", ".", "..", ".hidden", "a/b"} {
		err := New(t.TempDir(), quiet()).Exclusive(t.Context(), key, nil, func(string) error { return nil })
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestMountBelow(t *testing.T) {
	t.Parallel()
	const table = `22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:5 / /state/.work/img/root/dev rw - devtmpfs udev rw
31 22 0:6 / /with\040space/x rw - tmpfs tmpfs rw
`
	for dir, want := range map[string]string{
		"/state/.work/img": "/state/.work/img/root/dev", "/state/.work/im": "", "/state/.work/img/root/dev": "/state/.work/img/root/dev",
		"/with space": "/with space/x", "/other": "",
	} {
		if got, err := mountBelow(strings.NewReader(table), dir); got != want || err != nil {
			t.Errorf("%s: got %q, %v", dir, got, err)
		}
	}
}
