//go:build vm

package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

// A scenario is an operation that is broken at each of its calls in turn.
type scenario struct {
	name    string
	prepare func(context.Context, client) error
	act     func(context.Context, client) error
	soak    bool // only if there is time
}

// subject is the VM of every scenario.
const subject = "subject"

func nothing(context.Context, client) error { return nil }

func stopped(ctx context.Context, c client) error {
	_, err := c.create(ctx, subject, "none", false)
	return err
}

func running(ctx context.Context, c client) error {
	_, err := c.create(ctx, subject, "none", true)
	return err
}

func paused(ctx context.Context, c client) error {
	if err := running(ctx, c); err != nil {
		return err
	}
	_, err := c.pause(ctx, subject)
	return err
}

// saved is a VM that runs, and a point of it to return to.
func saved(ctx context.Context, c client) error {
	if err := running(ctx, c); err != nil {
		return err
	}
	_, err := c.snapshot(ctx, subject)
	return err
}

func scenarios() []scenario {
	verb := func(do func(client, context.Context, string) (*bangerv1.VM, error)) func(context.Context, client) error {
		return func(ctx context.Context, c client) error {
			_, err := do(c, ctx, subject)
			return err
		}
	}
	remove := func(force bool) func(context.Context, client) error {
		return func(ctx context.Context, c client) error { return c.delete(ctx, subject, force) }
	}
	return []scenario{
		{name: "create", prepare: nothing, act: stopped},
		{name: "start", prepare: stopped, act: verb(client.start)},
		{name: "stop", prepare: running, act: verb(client.stop)},
		{name: "delete", prepare: stopped, act: remove(false)},
		{name: "delete-force", prepare: running, act: remove(true)},
		{name: "run-rm", prepare: nothing, act: func(ctx context.Context, c client) error { return c.runRemove(ctx, subject, "user") }},
		{name: "kill", prepare: running, act: verb(client.kill)},
		{name: "pause", prepare: running, act: verb(client.pause)},
		{name: "resume", prepare: paused, act: verb(client.resume)},
		{name: "fork", prepare: running, act: verb(client.fork)},
		{name: "snapshot", prepare: running, act: verb(client.snapshot)},
		{name: "restore", prepare: saved, act: verb(client.restore)},
		{name: "restart", prepare: running, act: verb(client.restart), soak: true},
	}
}

// TestCrashPoints breaks each operation at each call that it makes: the call fails, or the daemon is killed before it,
// or, if it changes something, right after it. The next daemon must find everything at rest, and what is there must work.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios() {
		if s.soak && !soak() {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.serve()
			calls := b.calls(s)
			broken := 0
			for name, n := range counted(calls) {
				for _, mode := range modes(name) {
					if b.Failed() {
						return
					}
					if b.breakAt(s, point{name, n, mode}) {
						broken++
					} else {
						t.Logf("%s was not reached", point{name, n, mode})
					}
				}
			}
			t.Logf("%d calls, broken %d times", len(calls), broken)
			if broken < len(calls) {
				t.Errorf("the operation was broken only %d times", broken)
			}
		})
	}
}

// point is where and how an operation is broken.
type point struct {
	name string // of the call
	n    int    // the how manieth of that name
	mode string
}

func (p point) String() string { return fmt.Sprintf("%s:%d:%s", p.name, p.n, p.mode) }

// counted yields each call's name, and the how manieth of its name it is.
func counted(calls []string) func(func(string, int) bool) {
	return func(yield func(string, int) bool) {
		seen := map[string]int{}
		for _, name := range calls {
			seen[name]++
			if !yield(name, seen[name]) {
				return
			}
		}
	}
}

// modes leaves out what would be the same: after a call that changes nothing is before the next one.
func modes(name string) []string {
	switch name {
	case "Get", "List", "Hypervisor", "Image", "ImageByDigest", "Kernel":
		return []string{"fail", "before"}
	}
	return []string{"fail", "before", "after"}
}

// calls runs a scenario undisturbed and returns the calls that its operation made.
func (b *bed) calls(s scenario) []string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{Client: rc}
	b.must(s.prepare(ctx, c))
	b.write(filepath.Join(b.points, "calls"), "")
	b.must(s.act(ctx, c))
	text, err := os.ReadFile(filepath.Join(b.points, "calls"))
	b.must(err)
	b.empty(ctx, c)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// breakAt runs a scenario with its operation broken at a point and reports whether the point was reached.
func (b *bed) breakAt(s scenario, p point) bool {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{Client: rc}
	b.must(s.prepare(ctx, c))
	before, _ := c.get(ctx, subject)
	b.write(filepath.Join(b.points, "calls"), "")
	b.write(filepath.Join(b.points, "at"), p.String())
	acted := s.act(ctx, c)
	reached := errors.Is(os.Remove(filepath.Join(b.points, "at")), os.ErrNotExist)
	if reached && p.mode != "fail" {
		b.awaitEnd()
		b.serve()
		again, err := b.connect(ctx)
		b.must(err)
		defer again.Close()
		c = client{Client: again}
	}
	b.Logf("%s: %v", p, acted)
	b.afterwards(ctx, c, s, p, before)
	if b.Failed() {
		b.Logf("so it was after %s", p)
	}
	return reached
}

// afterwards checks that the daemon's next life, or the rest of this one, has nothing to complain about.
func (b *bed) afterwards(ctx context.Context, c client, s scenario, p point, before *bangerv1.VM) {
	b.Helper()
	vm, err := c.get(ctx, subject)
	if err != nil { // it is gone, or never was
		b.empty(ctx, c)
		return
	}
	switch state := microvm.State(vm.GetState()); {
	case p.mode == "fail" && (state == microvm.Creating || state == microvm.Deleting):
		// What was to be undone or removed could not be recorded; to delete it is all that is left.
	case p.mode == "fail" && state.HasProcess() && vm.GetVmmPid() == 0:
		// Its end could not be recorded; the next who asks for something brings it to rest.
		if vm, err := c.stop(ctx, subject); err != nil || vm.GetState() != string(microvm.Stopped) {
			b.Errorf("%s: to stop what is %s: %s, %v", p, state, vm.GetState(), err)
		}
		fallthrough
	default:
		b.consistent(ctx, c)
		if (s.name == "pause" || s.name == "resume") && vm.GetBootId() != before.GetBootId() {
			b.Errorf("%s: the VM did not survive: it is %s (%s)", p, vm.GetState(), vm.GetCause())
		}
		b.works(ctx, c, p)
	}
	b.empty(ctx, c)
}

// works checks that the subject can be used.
func (b *bed) works(ctx context.Context, c client, p point) {
	b.Helper()
	vm, err := c.get(ctx, subject)
	if err != nil {
		return
	}
	if vm.GetState() == string(microvm.Paused) {
		_, err = c.resume(ctx, subject)
	} else {
		_, err = c.start(ctx, subject)
	}
	if err == nil {
		err = c.exec(ctx, subject)
	}
	if err != nil && !fault.Is(err, fault.NotFound) { // a deletion that was left without a client may end only now
		b.Errorf("%s: use the VM that is %s: %v\n%s", p, vm.GetState(), err, b.lastLog())
	}
}
