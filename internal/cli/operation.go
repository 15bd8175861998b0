package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

const operationHelp = `An operation is a piece of long work that the daemon does: create, start, stop, ... It goes on when the command that
asked for it is gone, and is remembered for ten minutes after its end.

  banger operation list

What next: watch shows one until its end, cancel ends one.`

// operationView is an operation in JSON and YAML.
type operationView struct {
	ID        string               `json:"id"`
	Kind      string               `json:"kind"`
	VM        string               `json:"vm"`
	VMName    string               `json:"vm_name"`
	State     string               `json:"state"` // running, succeeded, failed, canceled
	StartedAt *time.Time           `json:"started_at"`
	EndedAt   *time.Time           `json:"ended_at"`
	Error     string               `json:"error"`
	ErrorKind string               `json:"error_kind"`
	Stages    []operationStageView `json:"stages"`
}

// operationStageView is one step of an operation.
type operationStageView struct {
	Name      string     `json:"name"`
	StartedAt *time.Time `json:"started_at"`
	Ended     bool       `json:"ended"`
	Seconds   float64    `json:"seconds"` // once it has ended
	Detail    string     `json:"detail"`
	Current   int64      `json:"current"`
	Total     int64      `json:"total"`
	Unit      string     `json:"unit"`
	Error     string     `json:"error"`
}

func viewOperation(op *bangerv1.Operation) operationView {
	v := operationView{
		ID: op.GetId(), Kind: op.GetKind(), VM: op.GetVmId(), VMName: op.GetVmName(), State: op.GetState(),
		StartedAt: stamp(op.GetStartedAt()), EndedAt: stamp(op.GetEndedAt()), Error: op.GetError(), ErrorKind: op.GetErrorKind(),
		Stages: []operationStageView{},
	}
	for _, s := range op.GetStages() {
		p := s.GetProgress()
		v.Stages = append(v.Stages, operationStageView{
			Name: p.GetStage(), StartedAt: stamp(s.GetStartedAt()), Ended: p.GetEnded(), Seconds: p.GetElapsed().AsDuration().Seconds(),
			Detail: p.GetDetail(), Current: p.GetCurrent(), Total: p.GetTotal(), Unit: p.GetUnit(), Error: p.GetError(),
		})
	}
	return v
}

func newOperationList(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List the operations",
		Long:              "List the operations that are under way and those that ended in the last ten minutes.",
		Example:           "  banger operation list\n  banger operation list --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runOperationList(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	o.registerIDs(cmd, "ids")
	return cmd
}

func runOperationList(ctx context.Context, a *app, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	ops, err := listOperations(ctx, client)
	if err != nil {
		return err
	}
	views := make([]operationView, len(ops))
	t := &table{head: []string{"ID", "KIND", "VM", "STATE", "AGE", "TOOK", "DETAIL"}}
	for i, op := range ops {
		if o.ids {
			if err := a.printLine(op.GetId()); err != nil {
				return err
			}
			continue
		}
		views[i] = viewOperation(op)
		took := ""
		if op.GetEndedAt() != nil {
			took = duration(when(op.GetEndedAt()).Sub(when(op.GetStartedAt())))
		}
		t.add(op.GetId(), op.GetKind(), op.GetVmName(), op.GetState(), age(time.Now(), when(op.GetStartedAt())), took, detailOf(op))
	}
	if o.ids {
		return nil
	}
	return o.write(a, views, func(w io.Writer) error { return t.write(w) })
}

// detailOf is what an operation does right now, or why it failed.
func detailOf(op *bangerv1.Operation) string {
	if op.GetError() != "" {
		return op.GetError()
	}
	for _, s := range op.GetStages() {
		if p := s.GetProgress(); op.GetState() == "running" && !p.GetEnded() {
			return p.GetStage() + " " + counted(p)
		}
	}
	return ""
}

func listOperations(ctx context.Context, client *rpcclient.Client) ([]*bangerv1.Operation, error) {
	res, err := client.Operations.ListOperations(ctx, connect.NewRequest(&bangerv1.ListOperationsRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetOperations(), nil
}

func oneOperation(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s takes the id of one operation, not %d", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
	}
	return nil
}

func newOperationWatch(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:   "watch <operation>",
		Short: "Show an operation until its end",
		Long: `Show the progress of an operation until its end, and then how it ended. One that failed makes this fail, too. Ctrl-C ends
the watching, not the operation. An id may be shortened as long as it is clear which is meant.`,
		Example:           "  banger operation watch 3f2a\n  banger operation watch 3f2a --output json",
		Args:              oneOperation,
		RunE:              func(cmd *cobra.Command, args []string) error { return runOperationWatch(cmd.Context(), a, args[0], o) },
		ValidArgsFunction: completer{a}.oneOperation,
	}
	o.register(cmd)
	return cmd
}

func runOperationWatch(ctx context.Context, a *app, id string, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := client.Operations.WatchOperation(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	d := a.newDisplay()
	defer d.keep()
	var last *bangerv1.Operation
	ended := 0 // stages that have been shown to their end
	for stream.Receive() {
		last = stream.Msg()
		for i, s := range last.GetStages() {
			if i >= ended {
				d.update("", s.GetProgress())
			}
			if i == ended && s.GetProgress().GetEnded() {
				ended++
			}
		}
	}
	d.keep()
	if err := stream.Err(); err != nil {
		return err
	}
	if o.format.value != "table" {
		if err := o.write(a, viewOperation(last), nil); err != nil {
			return err
		}
	}
	what := last.GetKind() + " " + last.GetVmName()
	if last.GetError() != "" {
		return fault.New(fault.ParseKind(last.GetErrorKind()), "%s: %s: %s", what, last.GetState(), last.GetError())
	}
	if o.format.value != "table" {
		return nil
	}
	return a.printLine(oneLine(what + ": " + last.GetState() + ", " + duration(when(last.GetEndedAt()).Sub(when(last.GetStartedAt())))))
}

func newOperationCancel(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel <operation>",
		Short: "End an operation",
		Long: `Ask an operation to end, and wait until it has. What it began is undone. One that has come so far that it can't be undone,
such as a stop or a delete that has begun, goes on to its end.`,
		Example:           "  banger operation cancel 3f2a",
		Args:              oneOperation,
		RunE:              func(cmd *cobra.Command, args []string) error { return runOperationCancel(cmd.Context(), a, args[0]) },
		ValidArgsFunction: completer{a}.oneOperation,
	}
}

func runOperationCancel(ctx context.Context, a *app, id string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if _, err := client.Operations.CancelOperation(ctx, connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id})); err != nil {
		return err
	}
	stream, err := client.Operations.WatchOperation(ctx, connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return a.printLine(oneLine(last.GetKind() + " " + last.GetVmName() + ": " + last.GetState()))
}

func (c completer) oneOperation(cmd *cobra.Command, used []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(used) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.ask(cmd, used, func(ctx context.Context, client *rpcclient.Client) ([]string, error) {
		ops, err := listOperations(ctx, client)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, op := range ops {
			out = append(out, cobra.CompletionWithDesc(op.GetId(), oneLine(op.GetKind()+" "+op.GetVmName()+", "+op.GetState())))
		}
		return out, nil
	})
}

// How long a command that was interrupted waits for its operation to end.
const (
	giveUp = 10 * time.Second // for work that is undone when it is cancelled
	leave  = 2 * time.Second  // for work that, once begun, goes on to its end
)

// opener begins a long call.
type opener = func(context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error)

// followOrCancel shows the progress of a long call and returns its last event. A signal cancels the operation; then it waits
// for its end, so that what was begun has been undone when the command ends.
func followOrCancel(
	ctx context.Context, client *rpcclient.Client, d *display, owner string, open opener,
) (*bangerv1.Event, error) {
	last, _, err := followFor(ctx, giveUp, client, d, owner, open)
	return last, err
}

// followOrLeave is followOrCancel for work that may be past cancelling. If it goes on, that is said, and how to watch it.
func (a *app) followOrLeave(
	ctx context.Context, client *rpcclient.Client, d *display, owner, what string, open opener,
) (*bangerv1.Event, error) {
	last, id, err := followFor(ctx, leave, client, d, owner, open)
	if ctx.Err() == nil {
		return last, err
	}
	switch remote, ended := errors.AsType[*rpcclient.Remote](err); {
	case err == nil:
		a.say("%s: it could not be cancelled any more, and is done", what)
	case ended && fault.Is(err, fault.Canceled): // said by whoever ends the program
	case ended:
		a.say("%s: %s", what, remote.Error())
	case id == "":
		a.say("%s: whether it was begun is not known; see: banger operation list", what)
	default:
		a.say("%s: it goes on, as far as it cannot be cancelled; see how it ends: banger operation watch %s", what, id)
	}
	return last, err
}

// followFor shows the progress of a long call until its end and returns its last event and the id of its operation, if that
// became known. When ctx ends, the operation is cancelled and given some time to end. The error is of type *rpcclient.Remote
// if the daemon told how the operation ended.
func followFor(
	ctx context.Context, patience time.Duration, client *rpcclient.Client, d *display, owner string, open opener,
) (last *bangerv1.Event, id string, err error) {
	call, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	ids := make(chan string, 1)
	defer context.AfterFunc(ctx, func() {
		defer time.AfterFunc(patience, end).Stop()
		select {
		case id := <-ids:
			req := connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id})
			if _, err := client.Operations.CancelOperation(call, req); err != nil {
				end()
			}
		case <-call.Done():
		}
		<-call.Done()
	})()
	stream, err := open(call)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = stream.Close() }()
	last = &bangerv1.Event{}
	for stream.Receive() {
		last = stream.Msg()
		if p := last.GetProgress(); p != nil {
			d.update(owner, p)
		}
		if op := last.GetOperationId(); op != "" && id == "" {
			id = op
			ids <- id
		}
	}
	return last, id, stream.Err()
}
