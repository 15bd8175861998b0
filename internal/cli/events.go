package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// eventView is a line of the journal in JSON.
type eventView struct {
	Sequence  int64      `json:"sequence"`
	At        *time.Time `json:"at"`
	Kind      string     `json:"kind"`
	VM        string     `json:"vm"`
	VMName    string     `json:"vm_name"`
	Detail    string     `json:"detail"`
	Operation string     `json:"operation"` // empty: it happened by itself
}

type eventsOptions struct {
	query  bangerv1.EventsRequest
	format choiceFlag
}

func newEvents(a *app) *cobra.Command {
	o := &eventsOptions{format: choiceFlag{value: "table", choices: []string{"table", "json"}}}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened to VMs",
		Long: `Show what happened to VMs, oldest first: created, started, stopped and why, failed, paused, resumed, changed, adopted (by
a new daemon), deleted. Events are numbered without gaps; those of a VM stay when it is deleted. A program that saw the
events up to a number goes on with --after.`,
		Example:           "  banger events\n  banger events --follow --vm devbox\n  banger events --after 17 --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runEvents(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.query.Follow, "follow", "f", false, "go on with what comes, until Ctrl-C")
	f.StringVar(&o.query.Vm, "vm", "", "only those of the VMs with this `name` or id; it may be gone")
	f.Int64Var(&o.query.After, "after", 0, "only those after this `number`")
	f.VarP(&o.format, "output", "o", "form of the output: "+o.format.list()+" (one object per line)")
	complete(cmd, "vm", completer{a}.vms)
	complete(cmd, "after", noCompletion)
	complete(cmd, "output", fixed(o.format.choices...))
	return cmd
}

func runEvents(ctx context.Context, a *app, o *eventsOptions) error {
	if o.query.GetAfter() < 0 {
		return usagef("bad --after %d", o.query.GetAfter()).withHint("use 0 or more")
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	stream, err := client.Events.Events(ctx, connect.NewRequest(&o.query))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	head := o.format.value == "table"
	for stream.Receive() {
		if head {
			if err := a.printLine(fmt.Sprintf("%6s  %-19s  %-8s  %-20s  %s", "NUMBER", "TIME", "EVENT", "VM", "DETAIL")); err != nil {
				return err
			}
			head = false
		}
		if err := o.print(a, stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}

func (o *eventsOptions) print(a *app, e *bangerv1.JournalEvent) error {
	if o.format.value == "json" {
		return writeJSONLine(a.sys.Stdout, eventView{
			Sequence: e.GetSequence(), At: stamp(e.GetAt()), Kind: e.GetKind(), VM: e.GetVmId(), VMName: e.GetVmName(),
			Detail: e.GetDetail(), Operation: e.GetOperationId(),
		})
	}
	// Of fixed widths, because what comes is not known.
	line := fmt.Sprintf("%6d  %s  %-8s  %-20s  %s", e.GetSequence(), when(e.GetAt()).Local().Format(time.DateTime),
		oneLine(e.GetKind()), oneLine(e.GetVmName()), oneLine(e.GetDetail()))
	return a.printLine(strings.TrimRight(line, " "))
}
