package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
)

// fakeWork serves operations and events.
type fakeWork struct {
	bangerv1connect.UnimplementedOperationServiceHandler
	bangerv1connect.UnimplementedEventServiceHandler

	ops    []*bangerv1.Operation
	steps  []*bangerv1.Operation // what a watcher is shown
	cancel func(id string) error
	events func(r *bangerv1.EventsRequest, send func(*bangerv1.JournalEvent) error) error
}

func (f *fakeWork) register(mux *http.ServeMux) {
	mux.Handle(bangerv1connect.NewOperationServiceHandler(f))
	mux.Handle(bangerv1connect.NewEventServiceHandler(f))
}

func (f *fakeWork) ListOperations(
	context.Context, *connect.Request[bangerv1.ListOperationsRequest],
) (*connect.Response[bangerv1.ListOperationsResponse], error) {
	return connect.NewResponse(&bangerv1.ListOperationsResponse{Operations: f.ops}), nil
}

func (f *fakeWork) WatchOperation(
	_ context.Context, r *connect.Request[bangerv1.WatchOperationRequest], s *connect.ServerStream[bangerv1.Operation],
) error {
	for _, step := range f.steps {
		if !strings.HasPrefix(step.GetId(), r.Msg.GetId()) {
			return remoteError(connect.CodeNotFound, "not-found", "there is no operation "+r.Msg.GetId(), "list them: banger operation list")
		}
		if err := s.Send(step); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeWork) CancelOperation(
	_ context.Context, r *connect.Request[bangerv1.CancelOperationRequest],
) (*connect.Response[bangerv1.CancelOperationResponse], error) {
	return connect.NewResponse(&bangerv1.CancelOperationResponse{}), f.cancel(r.Msg.GetId())
}

func (f *fakeWork) Events(
	_ context.Context, r *connect.Request[bangerv1.EventsRequest], s *connect.ServerStream[bangerv1.JournalEvent],
) error {
	return f.events(r.Msg, s.Send)
}

// someOperations are one that ended well, one that failed and one under way.
func someOperations() []*bangerv1.Operation {
	then := time.Now().Add(-90 * time.Second)
	return []*bangerv1.Operation{
		{
			Id: "aa0000000001", Kind: "create", VmId: "aaaa00000001", VmName: "alpha", State: "succeeded",
			StartedAt: timestamppb.New(then), EndedAt: timestamppb.New(then.Add(2500 * time.Millisecond)),
			Stages: []*bangerv1.OperationStage{{
				StartedAt: timestamppb.New(then), Progress: &bangerv1.Progress{Stage: "make disks", Ended: true, Elapsed: durationpb.New(20 * time.Millisecond)},
			}},
		},
		{
			Id: "bb0000000002", Kind: "start", VmName: "beta", State: "failed", StartedAt: timestamppb.New(then), EndedAt: timestamppb.New(then.Add(time.Second)),
			Error: "the guest\ndid not answer\x1b[2J", ErrorKind: "timeout",
		},
		{
			Id: "cc0000000003", Kind: "stop", VmName: "gamma", State: "running", StartedAt: timestamppb.New(then),
			Stages: []*bangerv1.OperationStage{{Progress: &bangerv1.Progress{Stage: "shut down"}}},
		},
	}
}

func TestOperationList(t *testing.T) {
	t.Parallel()
	f := &fakeWork{ops: someOperations()}
	b := newBench(t, &fakeDaemon{extra: f.register})
	b.run("operation", "list", "-q").want(t, 0, "aa0000000001\nbb0000000002\ncc0000000003\n", "")
	r := b.run("operation", "list")
	for _, part := range []string{"aa0000000001  create  alpha  succeeded", "  2.5", "bb0000000002  start   beta   failed", "the guest did not answer?", "shut down"} {
		if !strings.Contains(r.stdout, part) {
			t.Errorf("no %q in\n%s", part, r.stdout)
		}
	}
	if lines := strings.Count(r.stdout, "\n"); lines != 4 {
		t.Errorf("%d lines:\n%s", lines, r.stdout)
	}
	var views []operationView
	if err := json.Unmarshal([]byte(b.run("operation", "list", "-o", "json").stdout), &views); err != nil || len(views) != 3 {
		t.Fatalf("%v, %v", views, err)
	}
	if v := views[0]; v.VM != "aaaa00000001" || v.EndedAt == nil || len(v.Stages) != 1 || v.Stages[0].Seconds != 0.02 || !v.Stages[0].Ended {
		t.Errorf("%+v", v)
	}
	if v := views[1]; v.ErrorKind != "timeout" || v.Stages == nil || v.State != "failed" {
		t.Errorf("%+v", v)
	}
	if v := views[2]; v.EndedAt != nil || v.State != "running" {
		t.Errorf("%+v", v)
	}
}

func TestOperationWatch(t *testing.T) {
	t.Parallel()
	ops := someOperations()
	running := &bangerv1.Operation{Id: ops[0].GetId(), Kind: "create", VmName: "alpha", State: "running", StartedAt: ops[0].GetStartedAt()}
	watch := func(steps ...*bangerv1.Operation) *bench {
		return newBench(t, &fakeDaemon{extra: (&fakeWork{steps: steps}).register})
	}
	watch(running, ops[0]).run("operation", "watch", "aa").want(t, 0, "create alpha: succeeded, 2.5s\n", "")
	r := watch(running, ops[0]).run("operation", "watch", "aa", "--output", "json")
	if !strings.Contains(r.stdout, `"state": "succeeded"`) || r.status != 0 {
		t.Errorf("%+v", r)
	}
	r = watch(ops[1]).run("operation", "watch", "bb")
	if r.status != exitFailed || r.stdout != "" || !strings.Contains(r.stderr, "start beta: failed: the guest\ndid not answer?") {
		t.Errorf("%+v", r)
	}
	watch(ops[1]).run("operation", "watch", "zz").want(t, exitFailed, "",
		"banger: there is no operation zz\n  try: list them: banger operation list\n")
	if r := watch().run("operation", "watch"); r.status != exitUsage {
		t.Errorf("%+v", r)
	}
}

func TestOperationCancel(t *testing.T) {
	t.Parallel()
	cancelled := ""
	ended := &bangerv1.Operation{Id: "cc0000000003", Kind: "start", VmName: "gamma", State: "canceled"}
	f := &fakeWork{steps: []*bangerv1.Operation{ended}, cancel: func(id string) error {
		cancelled = id
		return nil
	}}
	newBench(t, &fakeDaemon{extra: f.register}).run("operation", "cancel", "cc").want(t, 0, "start gamma: canceled\n", "")
	if cancelled != "cc" {
		t.Errorf("cancelled %q", cancelled)
	}
	f = &fakeWork{cancel: func(string) error { return remoteError(connect.CodeNotFound, "not-found", "there is none", "") }}
	newBench(t, &fakeDaemon{extra: f.register}).run("operation", "cancel", "cc").want(t, exitFailed, "", "banger: there is none\n")
}

// TestInterruptedVerbs: a signal cancels the operation, and what became of that is said.
func TestInterruptedVerbs(t *testing.T) {
	t.Parallel()
	const id = "dd0000000004"
	for name, c := range map[string]struct {
		end    func(done <-chan struct{}) error // what the daemon does once it was asked to cancel
		stderr string
	}{
		"cancelled": {
			func(<-chan struct{}) error {
				return remoteError(connect.CodeCanceled, "canceled", "it was cancelled", "")
			},
			"banger: interrupted\n",
		},
		"too late": {
			func(<-chan struct{}) error { return nil },
			"banger: stop alpha: it could not be cancelled any more, and is done\nbanger: interrupted\n",
		},
		"failed": {
			func(<-chan struct{}) error {
				return remoteError(connect.CodeInternal, "internal", "the disk is on fire", "")
			},
			"banger: stop alpha: the disk is on fire\nbanger: interrupted\n",
		},
		"goes on": {
			func(done <-chan struct{}) error { <-done; return nil },
			"banger: stop alpha: it goes on, as far as it cannot be cancelled; see how it ends: banger operation watch " + id + "\nbanger: interrupted\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked, done := make(chan string, 1), make(chan struct{})
			finish := sync.OnceFunc(func() { close(done) })
			defer finish()
			f := &fakeWork{cancel: func(id string) error {
				asked <- id
				return nil
			}}
			var b *bench
			b = newBench(t, &fakeDaemon{vms: someVMs(), extra: f.register, long: func(verb, vm string, send func(*bangerv1.Event) error) error {
				if verb != "stop" || vm != "aaaa00000001" {
					return fmt.Errorf("a wrong call: %s %s", verb, vm)
				}
				if err := send(&bangerv1.Event{OperationId: id}); err != nil {
					return err
				}
				b.signals <- syscall.SIGINT
				if got := <-asked; got != id {
					return fmt.Errorf("%s was cancelled", got)
				}
				return c.end(done)
			}})
			b.run("stop", "alpha").want(t, 130, "", c.stderr)
		})
	}
}
