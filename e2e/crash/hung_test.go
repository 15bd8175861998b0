//go:build vm

package crash

import (
	"context"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// TestHungMonitor stops a monitor, so that it takes connections and never answers. Nothing may wait for it for long.
func TestHungMonitor(t *testing.T) {
	t.Parallel()
	const long = 30 * time.Second
	for name, act := range map[string]func(ctx context.Context, b *bed, c client) error{
		"stop":         func(ctx context.Context, _ *bed, c client) error { _, err := c.stop(ctx, subject); return err },
		"restart":      func(ctx context.Context, _ *bed, c client) error { _, err := c.restart(ctx, subject); return err },
		"kill":         func(ctx context.Context, _ *bed, c client) error { _, err := c.kill(ctx, subject); return err },
		"delete-force": func(ctx context.Context, _ *bed, c client) error { return c.delete(ctx, subject, true) },
		"pause": func(ctx context.Context, _ *bed, c client) error {
			_, err := c.pause(ctx, subject)
			if !fault.Is(err, fault.Timeout) {
				return err
			}
			_, err = c.kill(ctx, subject)
			return err
		},
		"pause-killed": func(ctx context.Context, _ *bed, c client) error {
			go func() { _, _ = c.pause(ctx, subject) }()
			time.Sleep(100 * time.Millisecond)
			_, err := c.kill(ctx, subject)
			return err
		},
		"exec": func(ctx context.Context, _ *bed, c client) error {
			impatient, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_ = c.exec(impatient, subject)
			return c.delete(ctx, subject, true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.serve()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			rc, err := b.connect(ctx)
			b.must(err)
			defer rc.Close()
			c := client{Client: rc}
			vm, err := c.create(ctx, subject, "none", true)
			b.must(err)
			b.must(syscall.Kill(int(vm.GetMonitorPid()), syscall.SIGSTOP))
			began := time.Now()
			if err := act(ctx, b, c); err != nil {
				t.Error(err)
			}
			took := time.Since(began)
			t.Logf("it took %s", took.Round(time.Millisecond))
			if took > long {
				t.Errorf("it took %s", took)
			}
			b.rest(ctx, c)
			b.works(ctx, c, point{name: name})
			b.empty(ctx, c)
		})
	}
}

// TestHungMonitorIsNotAdopted gives recovery a monitor that does not answer.
func TestHungMonitorIsNotAdopted(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.serve()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	vm, err := client{Client: rc}.create(ctx, subject, "none", true)
	b.must(err)
	b.must(syscall.Kill(int(vm.GetMonitorPid()), syscall.SIGSTOP))
	b.kill(syscall.SIGKILL)
	b.serve()
	again, err := b.connect(ctx)
	b.must(err)
	defer again.Close()
	c := client{Client: again}
	b.consistent(ctx, c)
	if vm, err := c.get(ctx, subject); err != nil || vm.GetState() != string(microvm.Stopped) {
		t.Errorf("it is %s, %v", vm.GetState(), err)
	}
	b.works(ctx, c, point{name: "recovery"})
	b.empty(ctx, c)
}
