// Package cli is the command line: it reads arguments, asks the daemon, and shows the answers. Every command is one
// file: its options, its constructor (newX) and its work (runX).
//
// It owns the terminal (raw mode, live progress, what goes to standard output and what to standard error), the meaning
// of exit statuses, and the resolution of VM references for commands that take many. It decides nothing about VMs: that
// is the daemon's, which it reaches through package rpcclient. The other roots of the binary (daemon, monitor) are
// handed to it as functions, so that it does not depend on them.
//
// Goroutines: [Main] runs one that takes signals; an attached session runs one that sends and one that reads input. All
// end with Main, but for one that is blocked reading standard input: the end of the process is what ends it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/rpcclient"
)

// Roots are the other programs within the binary. Each blocks until it is done or the context ends, which the first
// SIGINT, SIGTERM, SIGHUP or SIGQUIT brings about.
type Roots struct {
	Daemon  func(ctx context.Context) error
	Monitor func(ctx context.Context, dir string) error // of the VM whose directory this is
}

// System is what the command line needs of the process that it runs in.
type System struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// LookupEnv is [os.LookupEnv].
	LookupEnv func(string) (string, bool)
	// Executable is the path of the binary, to start a daemon with; empty: never start one.
	Executable string
	// Signals are those sent to the process. They are the caller's to collect, so that a test can send some.
	Signals <-chan os.Signal
}

// OS returns the System of this process. Call stop when done.
func OS() (sys System, stop func()) {
	signals := make(chan os.Signal, 16)
	// SIGPIPE is taken, not heeded: a write to a closed pipe then fails with EPIPE instead of ending the process with
	// the terminal still raw.
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH, syscall.SIGPIPE)
	exe, err := os.Executable()
	if err != nil {
		exe = ""
	}
	return System{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		LookupEnv: os.LookupEnv, Executable: exe, Signals: signals,
	}, func() { signal.Stop(signals) }
}

// Exit statuses. A guest command's own status is passed on as it is.
const (
	exitOK            = 0
	exitChecksFailed  = 1   // doctor, daemon status
	exitUsage         = 2   // the command line is wrong
	exitFailed        = 125 // banger itself failed
	exitNotExecutable = 126 // the command in the guest can't be run
	exitNotFound      = 127 // the command in the guest is not there
	exitSignal        = 128 // plus the number of the signal
	exitBrokenPipe    = exitSignal + int(syscall.SIGPIPE)
)

// Main runs the command line args (without the program's name) and returns the exit status.
func Main(ctx context.Context, args []string, roots Roots, sys System) int {
	ctx, ints := takeSignals(ctx, sys.Signals)
	defer ints.stop()
	a := &app{sys: sys, roots: roots, signals: ints}
	root := newRoot(a)                        //nolint:contextcheck // commands get theirs from ExecuteContext
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	root.SetIn(sys.Stdin)
	root.SetOut(sys.Stdout)
	root.SetErr(sys.Stderr)
	err := root.ExecuteContext(ctx)
	a.close()
	return a.finish(ctx, err)
}

// app is what all commands share in one run of the program.
type app struct {
	sys     System
	roots   Roots
	signals *signals
	quiet   bool
	noColor bool

	client *rpcclient.Client // made by connect; nil before
}

// exitStatus ends the program with a status and without a message: all has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a wrong command line.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) *usageError {
	return &usageError{err: fmt.Errorf(format, args...)}
}

func (e *usageError) withHint(format string, args ...any) *usageError {
	return &usageError{err: e.err, hint: fmt.Sprintf(format, args...)}
}

// finish tells the error, if there is one to tell, and returns the exit status.
func (a *app) finish(ctx context.Context, err error) int {
	var status exitStatus
	var sig *signalError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, syscall.EPIPE):
		return exitBrokenPipe // the reader has had enough; nobody is to be told
	case errors.As(err, &sig), fault.Is(err, fault.Canceled) && errors.As(context.Cause(ctx), &sig):
		a.say("%s", sig.Error())
		return exitSignal + int(sig.signal)
	}
	a.sayError(err)
	return statusOf(err)
}

// statusOf is the table of exit statuses of errors.
func statusOf(err error) int {
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if r, ok := errors.AsType[*rpcclient.Remote](err); ok {
		switch r.Kind {
		case rpcclient.KindCommandNotFound:
			return exitNotFound
		case rpcclient.KindCommandNotExecutable:
			return exitNotExecutable
		}
	}
	return exitFailed
}

// say writes one line to standard error.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.sys.Stderr, "banger: %s\n", printable(fmt.Sprintf(format, args...)))
}

// sayError writes what failed and why, and on a second line what to do next.
func (a *app) sayError(err error) {
	a.say("%s", strings.TrimSpace(err.Error()))
	if hint := hintOf(err); hint != "" {
		_, _ = fmt.Fprintf(a.sys.Stderr, "  try: %s\n", printable(hint))
	}
}

// hintOf returns what to do next: the outermost hint, which may be behind plain wrappers.
func hintOf(err error) string {
	if usage, ok := errors.AsType[*usageError](err); ok && usage.hint != "" {
		return usage.hint
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return fault.HintOf(e)
	}
	return ""
}

// note is say for what a script does not want to hear: only on a terminal and not with --quiet.
func (a *app) note(format string, args ...any) {
	if !a.quiet && isTerminal(a.sys.Stderr) {
		a.say(format, args...)
	}
}

func (a *app) env(name string) string {
	v, _ := a.sys.LookupEnv(name)
	return v
}

// paint returns the painter for a stream.
func (a *app) paint(w io.Writer) painter {
	noColor := a.noColor || a.env("NO_COLOR") != "" // https://no-color.org
	return painter{on: !noColor && a.env("TERM") != "dumb" && isTerminal(w)}
}

// exactArgs and friends are cobra's validators with our usage errors.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, but got %q", cmd.CommandPath(), args[0]).
			withHint("%s --help", cmd.CommandPath())
	}
	return nil
}

func oneVM(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s takes one VM, not %d", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
	}
	return nil
}

func someOf(noun string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("%s needs the name of at least one %s", cmd.CommandPath(), noun).withHint("%s", cmd.UseLine())
		}
		return nil
	}
}
