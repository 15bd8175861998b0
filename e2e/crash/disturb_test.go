//go:build vm

package crash

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

// disturbance is what happens while an operation is held at one of its calls. It may begin something that goes on until
// the operation has been let go: then it returns a function that waits for that.
type disturbance struct {
	name string
	do   func(b *bed, ctx context.Context, c client, gone context.CancelFunc) (wait func())
}

func disturbances() []disturbance {
	killAll := func(what string) func(*bed, context.Context, client, context.CancelFunc) func() {
		return func(b *bed, _ context.Context, _ client, _ context.CancelFunc) func() {
			for pid, cmdline := range b.processes() {
				if strings.Contains(cmdline, what) && pid != b.pid() {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			time.Sleep(20 * time.Millisecond) // for the daemon to notice, or not
			return nil
		}
	}
	meanwhile := func(do func(context.Context, client) error) func(*bed, context.Context, client, context.CancelFunc) func() {
		return func(_ *bed, ctx context.Context, c client, _ context.CancelFunc) func() {
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = do(ctx, c)
			}()
			time.Sleep(20 * time.Millisecond) // for the call to arrive
			return func() { <-done }
		}
	}
	return []disturbance{
		{"the monitor is killed", killAll(" monitor ")},
		{"the VMM is killed", killAll("banger-guest")},
		{"the client goes away", func(_ *bed, _ context.Context, _ client, gone context.CancelFunc) func() {
			gone()
			time.Sleep(20 * time.Millisecond)
			return nil
		}},
		{"it is deleted by force", meanwhile(func(ctx context.Context, c client) error { return c.delete(ctx, subject, true) })},
		{"it is killed", meanwhile(func(ctx context.Context, c client) error {
			_, err := c.kill(ctx, subject)
			return err
		})},
	}
}

// TestDisturbed holds each operation at each call that it makes while something else happens to the VM, and lets it go on.
func TestDisturbed(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios() {
		if s.soak && !soak() {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.serve()
			for name, n := range counted(b.calls(s)) {
				if modes := modes(name); len(modes) < 3 && !soak() {
					continue // the calls that change something have the interesting moments between them
				}
				for _, d := range disturbances() {
					if b.Failed() {
						return
					}
					b.disturb(s, point{name, n, "hold"}, d)
				}
			}
		})
	}
}

// disturb holds the operation at a point while something happens.
func (b *bed) disturb(s scenario, p point, d disturbance) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{Client: rc}
	b.must(s.prepare(ctx, c))
	b.write(filepath.Join(b.points, "calls"), "")
	b.write(filepath.Join(b.points, "at"), p.String())
	acting, gone := context.WithCancel(ctx)
	defer gone()
	acted := make(chan error, 1)
	go func() { acted <- s.act(acting, c) }()
	held := filepath.Join(b.points, "held")
	for {
		if _, err := os.Stat(held); err == nil {
			break
		}
		select {
		case <-acted: //nolint:errcheck // the point was not reached this time
			_ = os.Remove(filepath.Join(b.points, "at"))
			b.empty(ctx, c)
			return
		case <-time.After(time.Millisecond):
		}
	}
	began := time.Now()
	wait := d.do(b, ctx, c, gone)
	b.must(os.Remove(held))
	err = <-acted
	if wait != nil {
		wait()
	}
	b.Logf("%s at %s: %v (%s)", d.name, p, err, time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 15*time.Second {
		b.Errorf("%s at %s: it took %s", d.name, p, took)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		b.Fatalf("%s at %s: the operation hangs\n%s", d.name, p, b.lastLog())
	}
	b.rest(ctx, c)
	b.works(ctx, c, p)
	b.empty(ctx, c)
	if b.Failed() {
		b.Logf("so it was when %s at %s", d.name, p)
	}
}

// rest waits until no operation that a client has left behind goes on, and checks that everything is in order.
func (b *bed) rest(ctx context.Context, c client) {
	b.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		vm, err := c.get(ctx, subject)
		if err != nil || atRest(vm) {
			break
		}
	}
	b.consistent(ctx, c)
}

func atRest(vm *bangerv1.VM) bool {
	state := microvm.State(vm.GetState())
	if vm.GetEphemeral() && state != microvm.Failed {
		return false // it is about to be deleted
	}
	switch state {
	case microvm.Running, microvm.Paused:
		return vm.GetVmmPid() != 0
	case microvm.Stopped, microvm.Suspended, microvm.Failed:
		return true
	case microvm.Creating, microvm.Starting, microvm.Stopping, microvm.Deleting:
	}
	return false
}
