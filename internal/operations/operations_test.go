package operations_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/fault"
	"banger/internal/operations"
	"banger/internal/progress"
)

const grace = 2 * time.Second

// run gives a test a registry in a bubble with a clock of its own; end ends the registry and waits for it.
func run(t *testing.T, test func(t *testing.T, r *operations.Registry, end func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := operations.New(slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.Run(ctx, grace)
		}()
		end := func() { cancel(); <-ended }
		test(t, r, end)
		end()
	})
}

func start(t *testing.T, r *operations.Registry, ctx context.Context, work operations.Work) *operations.Operation { //nolint:revive // t goes first
	t.Helper()
	op, err := r.Start(ctx, operations.Request{Kind: "start", VM: "0123456789ab", Name: "box"}, work)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func untilCancelled(ctx context.Context, _ *operations.Operation) error {
	<-ctx.Done()
	return fmt.Errorf("boot: %w", ctx.Err())
}

func end(t *testing.T, op *operations.Operation) (last operations.Snapshot) {
	t.Helper()
	if err := op.Watch(t.Context(), func(s operations.Snapshot) error { last = s; return nil }); err != nil {
		t.Fatal(err)
	}
	return last
}

func TestHowAnOperationEnds(t *testing.T) {
	t.Parallel()
	cancelled := fault.New(fault.Canceled, "by request")
	for name, c := range map[string]struct {
		work   operations.Work
		cancel bool
		state  operations.State
		kind   fault.Kind
		text   string
	}{
		"well":           {func(context.Context, *operations.Operation) error { return nil }, false, operations.Succeeded, 0, ""},
		"with an error":  {func(context.Context, *operations.Operation) error { return fault.New(fault.Busy, "taken") }, false, operations.Failed, fault.Busy, "taken"},
		"with a defect":  {func(context.Context, *operations.Operation) error { panic("oh no") }, false, operations.Failed, fault.Internal, "oh no"},
		"cancelled":      {untilCancelled, true, operations.Canceled, fault.Canceled, "boot: context canceled"},
		"cancelled late": {func(ctx context.Context, _ *operations.Operation) error { <-ctx.Done(); return nil }, true, operations.Succeeded, 0, ""},
		"cancelled, and the work says something else": {func(ctx context.Context, _ *operations.Operation) error {
			<-ctx.Done()
			return fault.New(fault.Unavailable, "download broke off")
		}, true, operations.Canceled, fault.Canceled, "by request: download broke off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, r *operations.Registry, _ func()) {
				op := start(t, r, t.Context(), c.work)
				if c.cancel {
					op.Cancel(cancelled)
				}
				s := end(t, op)
				if s.State != c.state || (s.Err == nil) != (c.text == "") || s.Ended.IsZero() {
					t.Fatalf("it ended as %s: %v", s.State, s.Err)
				}
				if s.Err != nil && (!fault.Is(s.Err, c.kind) || !strings.Contains(s.Err.Error(), c.text)) {
					t.Errorf("error %v of kind %s", s.Err, fault.KindOf(s.Err))
				}
				op.Cancel(cancelled) // does nothing any more
				if again := op.Snapshot(); again.State != c.state {
					t.Errorf("after its end it became %s", again.State)
				}
			})
		})
	}
}

func TestTheClientMayGo(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, r *operations.Registry, _ func()) {
		type key struct{}
		client, leave := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
		op := start(t, r, client, func(ctx context.Context, op *operations.Operation) error {
			time.Sleep(time.Minute)
			if ctx.Value(key{}) != "v" || progress.OperationOf(ctx) != op.ID() {
				return errors.New("the context is another")
			}
			return ctx.Err()
		})
		leave()
		if err := op.Watch(client, func(operations.Snapshot) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("the client watches on: %v", err)
		}
		if s := end(t, op); s.State != operations.Succeeded {
			t.Errorf("it is %s: %v", s.State, s.Err)
		}
	})
}

// TestASlowWatcher sees the end of every stage and the last state, and does not hold up the work.
func TestASlowWatcher(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, r *operations.Registry, _ func()) {
		began := time.Now()
		op := start(t, r, t.Context(), func(_ context.Context, op *operations.Operation) error {
			op.About("ba9876543210", "made-up")
			for _, name := range []string{"image", "boot", "boot"} {
				done := progress.Sink(op.Report).Stage(name)
				for i := range int64(1000) {
					time.Sleep(time.Millisecond)
					op.Report(progress.Update{Stage: name, Current: i, Total: 1000})
				}
				done(nil)
			}
			return nil
		})
		calls, version := 0, int64(-1)
		var last operations.Snapshot
		err := op.Watch(t.Context(), func(s operations.Snapshot) error {
			if s.Version <= version {
				t.Errorf("version %d after %d", s.Version, version)
			}
			calls, version, last = calls+1, s.Version, s
			time.Sleep(700 * time.Millisecond)
			return nil
		})
		if err != nil || calls > 8 || calls < 4 {
			t.Errorf("%d calls, %v", calls, err)
		}
		if took := last.Ended.Sub(began); took != 3*time.Second {
			t.Errorf("the work took %s", took)
		}
		if last.VM != "ba9876543210" || last.Name != "made-up" || len(last.Stages) != 3 {
			t.Fatalf("at its end: %+v", last)
		}
		for i, s := range last.Stages {
			if !s.Ended || s.Elapsed != time.Second || !s.Started.Equal(began.Add(time.Duration(i)*time.Second)) {
				t.Errorf("stage %d: %+v", i, s)
			}
		}
	})
}

func TestStagesAreBounded(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, r *operations.Registry, _ func()) {
		op := start(t, r, t.Context(), func(_ context.Context, op *operations.Operation) error {
			for i := range 10_000 {
				op.Report(progress.Update{Stage: fmt.Sprint(i)})
			}
			return nil
		})
		if n := len(end(t, op).Stages); n != 200 {
			t.Errorf("%d stages", n)
		}
	})
}

func TestFindAndList(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, r *operations.Registry, _ func()) {
		if _, err := r.Find("a"); !fault.Is(err, fault.NotFound) || fault.HintOf(err) == "" {
			t.Errorf("in an empty registry: %v", err)
		}
		first := start(t, r, t.Context(), untilCancelled)
		time.Sleep(time.Second)
		for range 20 { // more than there are hexadecimal digits: two begin alike
			end(t, start(t, r, t.Context(), func(context.Context, *operations.Operation) error { return nil }))
		}
		if got, err := r.Find(first.ID()); err != nil || got != first {
			t.Errorf("by its id: %v, %v", got, err)
		}
		kinds := map[fault.Kind]bool{}
		for _, digit := range "0123456789abcdef" {
			if _, err := r.Find(string(digit)); err != nil {
				kinds[fault.KindOf(err)] = true
			}
		}
		if !kinds[fault.Invalid] {
			t.Error("no beginning of several ids is refused")
		}
		if _, err := r.Find(""); !fault.Is(err, fault.Invalid) {
			t.Errorf("no id at all: %v", err)
		}
		if list := r.List(); len(list) != 21 || list[0].ID != first.ID() || list[0].State != operations.Running {
			t.Errorf("list: %+v", list)
		}
		first.Cancel(fault.New(fault.Canceled, "x"))
	})
}

func TestEndedOperationsAreForgotten(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, r *operations.Registry, _ func()) {
		nothing := func(context.Context, *operations.Operation) error { return nil }
		old := start(t, r, t.Context(), untilCancelled)
		for range operations.KeepEnded + 50 {
			end(t, start(t, r, t.Context(), nothing))
			time.Sleep(time.Millisecond)
		}
		if n := len(r.List()); n != operations.KeepEnded+1 {
			t.Errorf("%d are kept", n)
		}
		time.Sleep(operations.KeepFor)
		if list := r.List(); len(list) != 1 || list[0].ID != old.ID() {
			t.Errorf("after a while there are %d", len(list))
		}
		old.Cancel(fault.New(fault.Canceled, "x"))
	})
}

func TestTheDaemonEnds(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, r *operations.Registry, shutdown func()) {
		quick := start(t, r, t.Context(), func(ctx context.Context, _ *operations.Operation) error {
			time.Sleep(grace / 2)
			return ctx.Err()
		})
		slow := start(t, r, t.Context(), untilCancelled)
		deaf := make(chan struct{})
		stuck := start(t, r, t.Context(), func(context.Context, *operations.Operation) error { <-deaf; return nil })
		began := time.Now()
		shutdown()
		if took := time.Since(began); took != 2*grace {
			t.Errorf("it took %s", took)
		}
		if s := quick.Snapshot(); s.State != operations.Succeeded {
			t.Errorf("what could end is %s: %v", s.State, s.Err)
		}
		if s := slow.Snapshot(); s.State != operations.Failed || !fault.Is(s.Err, fault.Unavailable) {
			t.Errorf("what was cancelled is %s: %v", s.State, s.Err)
		}
		if s := stuck.Snapshot(); s.State != operations.Running {
			t.Errorf("what does not listen is %s", s.State)
		}
		if _, err := r.Start(t.Context(), operations.Request{}, untilCancelled); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a new one: %v", err)
		}
		close(deaf)
	})
}

func TestLogLinesNameTheOperation(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(operations.LogHandler(slog.NewTextHandler(&out, nil))).With("a", "b")
	log.InfoContext(progress.WithOperation(t.Context(), "0123456789ab"), "one")
	log.InfoContext(t.Context(), "two")
	lines := strings.Split(out.String(), "\n")
	if !strings.HasSuffix(lines[0], "a=b op=0123456789ab") || !strings.HasSuffix(lines[1], "a=b") {
		t.Errorf("logged %q", lines)
	}
}
