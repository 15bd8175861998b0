package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// leaveKey is Ctrl-], which leaves the console, as it does in telnet and virsh.
const leaveKey = 0x1d

func newConsole(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "console <vm>",
		Short: "Attach to a VM's serial console",
		Long: `Attach to a VM's serial console, until the VM ends or Ctrl-] is pressed. Every other key goes to the guest.

Without a terminal, input is passed on until its end, and output until the VM's end.`,
		Example:           "  banger vm console devbox",
		Args:              oneVM,
		RunE:              func(cmd *cobra.Command, args []string) error { return runConsole(cmd.Context(), a, args[0]) },
		ValidArgsFunction: completer{a}.oneVM,
	}
}

// errLeave is the cause of a console's end by Ctrl-].
var errLeave = errors.New("left the console")

func runConsole(ctx context.Context, a *app, vm string) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(context.Canceled)
	stream := client.VMs.Console(ctx)
	defer func() { _ = stream.CloseResponse() }()
	if err := stream.Send(&bangerv1.ConsoleRequest{Kind: &bangerv1.ConsoleRequest_Vm{Vm: vm}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}

	var raw *rawMode
	if isTerminal(a.sys.Stdin) && isForeground(a.sys.Stdin) {
		a.note("this is the console of %s; Ctrl-] leaves it", vm)
		if raw, err = makeRaw(a.sys.Stdin); err != nil {
			return err
		}
		defer a.note("left the console of %s", vm)
		defer raw.restore()
		defer a.signals.divert(func(sig syscall.Signal) bool { return sig == syscall.SIGWINCH })()
	}
	go consoleInput(a, stream, raw, cancel)
	for {
		msg, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF), errors.Is(context.Cause(ctx), errLeave):
			return nil
		case err != nil:
			return err
		}
		if _, err := a.sys.Stdout.Write(msg.GetOutput()); err != nil {
			return fmt.Errorf("print the console's output: %w", err)
		}
	}
}

// consoleInput passes input on until its end, or until the key that leaves if it is a terminal in raw mode.
func consoleInput(
	a *app, stream *connect.BidiStreamForClient[bangerv1.ConsoleRequest, bangerv1.ConsoleResponse], raw *rawMode, cancel context.CancelCauseFunc,
) {
	defer raw.restoreInPanic()
	buf := make([]byte, inputBlock)
	for {
		n, err := a.sys.Stdin.Read(buf)
		input := buf[:n]
		leave := -1
		if raw != nil {
			if leave = bytes.IndexByte(input, leaveKey); leave >= 0 {
				input = input[:leave]
			}
		}
		if len(input) > 0 {
			if stream.Send(&bangerv1.ConsoleRequest{Kind: &bangerv1.ConsoleRequest_Input{Input: input}}) != nil {
				return // receiving says why
			}
		}
		switch {
		case leave >= 0:
			cancel(errLeave)
			return
		case err != nil:
			_ = stream.CloseRequest()
			return
		}
	}
}
