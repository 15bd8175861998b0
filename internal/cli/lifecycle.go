package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// call begins a long call for one VM.
type call func(ctx context.Context, client *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error)

// onEach makes a long call for each of the VMs and prints the names of those for which it succeeded. A signal cancels what
// can be cancelled.
func (a *app) onEach(ctx context.Context, verb string, refs []string, c call) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	all, err := targets(ctx, client, refs)
	if err != nil {
		return err
	}
	d := a.newDisplay()
	defer d.keep()
	return forEach(ctx, a, d, verb, all, func(vm *bangerv1.VM) (string, error) {
		_, err := a.followOrLeave(ctx, client, d, owner(all, vm), verb+" "+vm.GetName(),
			func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
				return c(ctx, client, vm.GetId())
			})
		return vm.GetName(), err
	}, a.printLine)
}

func newRestart(a *app) *cobra.Command {
	timeout := 10 * time.Second
	cmd := &cobra.Command{
		Use:   "restart <vm>...",
		Short: "Stop VMs and start them again",
		Long: `Stop VMs as "stop" does and start them again; they get a new boot id. One that does not run is started.
`,
		Example:           "  banger vm restart devbox\n  banger vm restart --timeout 30s devbox testbox",
		Args:              someOf("VM"),
		ValidArgsFunction: completer{a}.vms,
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return usagef("bad --timeout %s", timeout).withHint("use 0s or more")
			}
			return a.onEach(cmd.Context(), "restart", args,
				func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.VMs.Restart(ctx, connect.NewRequest(&bangerv1.RestartRequest{Vm: vm, Timeout: durationpb.New(timeout)}))
				})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long the guest may take to shut down before it is killed")
	return cmd
}

func newKill(a *app) *cobra.Command {
	name := "KILL"
	cmd := &cobra.Command{
		Use:   "kill <vm>...",
		Short: "End VMs at once; their disks are kept",
		Long: `End VMs at once, whatever is under way with them; what the guest has not written out is lost. With --signal, send
another signal to the VMM process instead.`,
		Example:           "  banger vm kill devbox\n  banger vm kill --signal TERM devbox",
		Args:              someOf("VM"),
		ValidArgsFunction: completer{a}.vms,
		RunE: func(cmd *cobra.Command, args []string) error {
			signal, err := parseSignal(name)
			if err != nil {
				return err
			}
			return a.onEach(cmd.Context(), "kill", args,
				func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.VMs.Kill(ctx, connect.NewRequest(&bangerv1.KillRequest{Vm: vm, Signal: signal}))
				})
		},
	}
	cmd.Flags().StringVar(&name, "signal", name, "signal by name or number")
	return cmd
}

// parseSignal reads TERM, SIGTERM or 15.
func parseSignal(text string) (int32, error) {
	const last = 64 // SIGRTMAX
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 1 && n <= last {
		return int32(n), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return int32(n), nil // small
	}
	return 0, usagef("there is no signal %q", text).withHint("use a name such as TERM, or a number from 1 to %d", last)
}

func newPause(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "pause <vm>...",
		Short:             "Freeze VMs; their memory is kept",
		Long:              "Freeze VMs: they use no CPU until \"resume\" lets them go on where they were.",
		Example:           "  banger vm pause devbox\n  banger vm resume devbox",
		Args:              someOf("VM"),
		ValidArgsFunction: completer{a}.vms,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onEach(cmd.Context(), "pause", args,
				func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.VMs.Pause(ctx, connect.NewRequest(&bangerv1.PauseRequest{Vm: vm}))
				})
		},
	}
}

func newResume(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "resume <vm>...",
		Short:             "Let paused VMs go on",
		Long:              "Let paused VMs go on where they were. The guest's clock is set right.",
		Example:           "  banger vm resume devbox",
		Args:              someOf("VM"),
		ValidArgsFunction: completer{a}.vms,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onEach(cmd.Context(), "resume", args,
				func(ctx context.Context, c *rpcclient.Client, vm string) (*connect.ServerStreamForClient[bangerv1.Event], error) {
					return c.VMs.Resume(ctx, connect.NewRequest(&bangerv1.ResumeRequest{Vm: vm}))
				})
		},
	}
}
