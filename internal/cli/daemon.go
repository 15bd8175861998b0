package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// daemonView is the daemon's state in JSON and YAML.
type daemonView struct {
	Running        bool       `json:"running"`
	Version        string     `json:"version"`
	PID            int64      `json:"pid"`
	StartedAt      *time.Time `json:"started_at"`
	ResidentMemory int64      `json:"resident_memory"`
	VMs            int32      `json:"vms"`
	VMsRunning     int32      `json:"vms_running"`
	Socket         string     `json:"socket"`
	StateDirectory string     `json:"state_directory"`
	ConfigFile     string     `json:"config_file"`
	Log            string     `json:"log"`
}

func newDaemonStatus(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "status",
		Short:             "Say whether the daemon runs, and how it does",
		Long:              "Say whether the daemon runs, and how it does. The exit status is 1 if it does not run; none is started.",
		Example:           "  banger daemon status\n  banger daemon status --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStatus(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	return cmd
}

func runDaemonStatus(ctx context.Context, a *app, o *outputFlags) error {
	paths, err := a.paths()
	if err != nil {
		return err
	}
	v := daemonView{Socket: paths.Socket(), StateDirectory: paths.State, Log: paths.DaemonLog()}
	client, err := a.connectRunning(ctx)
	switch {
	case fault.Is(err, fault.Unavailable):
	case err != nil:
		return err
	default:
		s := client.Status
		v = daemonView{
			Running: true, Version: s.GetVersion(), PID: s.GetPid(), StartedAt: stamp(s.GetStartedAt()),
			ResidentMemory: s.GetResidentMemory(), VMs: s.GetVms(), VMsRunning: s.GetRunning(), Socket: s.GetSocket(),
			StateDirectory: s.GetStateDirectory(), ConfigFile: s.GetConfigFile(), Log: paths.DaemonLog(),
		}
	}
	if err := o.write(a, v, func(w io.Writer) error { return writeDaemon(w, a.paint(w), v) }); err != nil {
		return err
	}
	if !v.Running {
		return exitStatus(exitChecksFailed)
	}
	return nil
}

func writeDaemon(w io.Writer, paint painter, v daemonView) error {
	s := &sheet{paint: paint}
	if !v.Running {
		s.section("The daemon is not running", "socket", v.Socket, "log", v.Log)
	} else {
		up := ""
		if v.StartedAt != nil {
			up = age(time.Now(), *v.StartedAt)
		}
		s.section("The daemon is running", "version", v.Version, "pid", pid(v.PID), "up for", up, "memory", size(v.ResidentMemory),
			"vms", fmt.Sprintf("%d, %d of them running", v.VMs, v.VMsRunning), "socket", v.Socket, "state", v.StateDirectory,
			"configuration", v.ConfigFile, "log", v.Log)
	}
	_, err := io.WriteString(w, s.b.String())
	return err
}

func newDaemonStop(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "stop",
		Short:             "End the daemon; VMs go on running",
		Long:              "End the daemon and wait until it is gone. VMs go on running, and the next daemon takes them over.",
		Example:           "  banger daemon stop",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStop(cmd.Context(), a) },
		ValidArgsFunction: noCompletion,
	}
}

func runDaemonStop(ctx context.Context, a *app) error {
	quiet := a.quiet
	a.quiet = true // that the version differs is why people stop it
	client, err := a.connectRunning(ctx)
	a.quiet = quiet
	if fault.Is(err, fault.Unavailable) {
		a.note("the daemon is not running")
		return nil
	}
	if err != nil {
		return err
	}
	// The descriptor is taken before the daemon is asked to end, so that it can't mean another process (pidfd_open(2)).
	fd, fdErr := unix.PidfdOpen(int(client.Status.GetPid()), 0)
	if fdErr == nil {
		defer func() { _ = unix.Close(fd) }()
	}
	if _, err := client.System.Shutdown(ctx, connect.NewRequest(&bangerv1.ShutdownRequest{})); err != nil {
		return err
	}
	client.Close()
	if fdErr != nil {
		return nil // it is gone already
	}
	return awaitEnd(ctx, fd)
}

// shutdownTimeout bounds the wait for the daemon's end.
const shutdownTimeout = 15 * time.Second

// awaitEnd waits for the end of the process that a descriptor stands for.
func awaitEnd(ctx context.Context, fd int) error {
	const step = 100 * time.Millisecond // how late an interruption is noticed; the end itself is noticed at once
	for deadline := time.Now().Add(shutdownTimeout); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(step.Milliseconds())) // a descriptor
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the daemon's end: %w", err)
		case n > 0:
			return nil
		}
	}
	return fault.New(fault.Timeout, "the daemon did not end within %s", shutdownTimeout).
		WithHint("see what it is doing: banger daemon logs")
}

func newDaemonLogs(a *app) *cobra.Command {
	var follow bool
	lines := 200
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Print the daemon's log",
		Long: `Print the end of the daemon's log. It is a file, and can be read without a daemon. When it has grown to 10 MiB a new
one is begun; two older ones are kept beside it.`,
		Example: "  banger daemon logs\n  banger daemon logs --follow",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 0 {
				return usagef("bad --lines %d", lines).withHint("use 0 or more")
			}
			return runDaemonLogs(cmd.Context(), a, lines, follow)
		},
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is written, until Ctrl-C")
	cmd.Flags().IntVarP(&lines, "lines", "n", lines, "how many lines from the end")
	return cmd
}

func runDaemonLogs(ctx context.Context, a *app, lines int, follow bool) error {
	paths, err := a.paths()
	if err != nil {
		return err
	}
	f, err := os.Open(paths.DaemonLog())
	if err != nil {
		return fault.New(fault.NotFound, "open the daemon's log: %w", err).
			WithHint("a daemon that was not started by a banger command logs elsewhere, such as to the journal")
	}
	defer func() { _ = f.Close() }() // of the one that is open by then
	if err := seekLines(f, lines); err != nil {
		return fmt.Errorf("read the daemon's log: %w", err)
	}
	for {
		// Looked at before the reading, so that nothing is missed of a file that is put aside for a new one.
		next := successor(f, paths.DaemonLog())
		if _, err := io.Copy(a.sys.Stdout, f); err != nil || !follow {
			if next != nil {
				_ = next.Close()
			}
			return err
		}
		if next != nil {
			_ = f.Close()
			f = next
			continue
		}
		// A file can't be waited for, and inotify would be much for a log that people watch.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// successor opens the log that has taken the place of the one that is open, or returns nil.
func successor(f *os.File, path string) *os.File {
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	old, oldErr := f.Stat()
	now, err := next.Stat()
	if oldErr != nil || err != nil || os.SameFile(old, now) {
		_ = next.Close()
		return nil
	}
	return next
}

// seekLines sets a file to the beginning of the last n lines.
func seekLines(f *os.File, n int) error {
	pos, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	end := pos
	buf := make([]byte, 16<<10)
	for pos > 0 {
		size := min(pos, int64(len(buf)))
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			// The line break at the very end closes the last line, it begins none.
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if n--; n <= 0 {
				_, err := f.Seek(pos+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

func newDaemonRun(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "run",
		Short:             "Run the daemon in the foreground",
		Long:              "Run the daemon until it is told to end: by a signal, or by banger daemon stop. Commands start one by themselves.",
		Example:           "  banger daemon run",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.runRoot(cmd.Context(), a.roots.Daemon) },
		ValidArgsFunction: noCompletion,
	}
}

func newMonitor(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "monitor DIR",
		Short:  "Run the process that watches over one VM",
		Hidden: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("%s takes one directory", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runRoot(cmd.Context(), func(ctx context.Context) error { return a.roots.Monitor(ctx, args[0]) })
		},
	}
}

// runRoot runs another program of this binary. To be ended by a signal is how these end.
func (a *app) runRoot(ctx context.Context, root func(context.Context) error) error {
	err := root(ctx)
	if ctx.Err() != nil && fault.Is(err, fault.Canceled) {
		return nil
	}
	return err
}
