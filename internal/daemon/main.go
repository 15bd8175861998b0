package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/config"
	"banger/internal/fault"
)

// readyVariable names, in the environment, the descriptor on which whoever starts the daemon waits for one line: "ready",
// or "error: " and why not.
const readyVariable = "BANGER_READY_FD"

// guestVariable names, in the environment, the guest agent's binary if it is not where an installation has it.
const guestVariable = "BANGER_GUEST"

// Main is the daemon process: it reads the configuration and runs the daemon until the context ends.
func Main(ctx context.Context) error {
	debug.SetGCPercent(50) // idle most of the time: a small heap is worth more than few collections
	ready := readyPipe()
	err := run(ctx, ready)
	if err != nil && ready != nil {
		word := oneLine(err)
		if fault.Is(err, fault.Exists) {
			word = "already running"
		}
		_, _ = fmt.Fprintf(ready, "error: %s\n", word)
		_ = ready.Close()
	}
	return err
}

func run(ctx context.Context, ready io.WriteCloser) error {
	c, err := config.Load(os.Getenv)
	if err != nil {
		return err
	}
	guest, err := findGuest()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(logWriter(c.Paths.DaemonLog()), &slog.HandlerOptions{Level: c.Daemon.LogLevel.Value}))
	return Run(ctx, Options{
		Config: c, Guest: guest, Log: log,
		Ready: func() error {
			if ready == nil {
				return nil
			}
			_, err := io.WriteString(ready, "ready\n")
			return errors.Join(err, ready.Close())
		},
	})
}

// readyPipe returns the pipe to whoever waits for the daemon, or nil if nobody does.
func readyPipe() io.WriteCloser {
	n, err := strconv.Atoi(os.Getenv(readyVariable))
	_ = os.Unsetenv(readyVariable)
	if err != nil || n < 3 {
		return nil
	}
	unix.CloseOnExec(n)
	return os.NewFile(uintptr(n), "ready")
}

// findGuest finds the guest agent: beside the program in a build tree, in libexec of an installation.
func findGuest() (string, error) {
	if path := os.Getenv(guestVariable); path != "" {
		return path, nil
	}
	exe, err := exePath()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(exe)
	for _, path := range []string{
		filepath.Join(dir, "banger-guest"),
		filepath.Join(dir, "..", "libexec", "banger", "banger-guest"),
	} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fault.New(fault.NotFound, "the guest agent banger-guest is neither beside %s nor in ../libexec/banger", exe).
		WithHint("build it: make build; or say where it is: %s=PATH", guestVariable)
}

func oneLine(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if hint := fault.HintOf(err); hint != "" {
		text += " (try: " + strings.ReplaceAll(hint, "\n", "; ") + ")"
	}
	return text
}
