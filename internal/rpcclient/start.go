package rpcclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// ReadyFDVariable is the environment variable that tells a daemon on which inherited descriptor to say how its start
// went: one line, "ready", or "error: " and why. A daemon that finds another one holding the lock says
// "error: already running".
const ReadyFDVariable = "BANGER_READY_FD"

const (
	readyFD        = 3 // the first of the descriptors that a child inherits
	alreadyRunning = "already running"
	maxReadyLine   = 4096 // bytes
)

// start runs a daemon until it says that it is ready. It returns lost = true if another daemon was there first.
func start(ctx context.Context, o Options) (lost bool, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("start the daemon: %w", err)
	}
	defer func() { _ = r.Close() }()
	cmd := hostexec.Cmd{
		Path:     o.Start[0],
		Args:     o.Start[1:],
		Env:      append(os.Environ(), fmt.Sprintf("%s=%d", ReadyFDVariable, readyFD)),
		Dir:      "/", // it must not keep the caller's directory busy
		Files:    []*os.File{w},
		Detached: true,
	}
	// What a daemon says before it has opened its log, or when it panics, would be lost otherwise.
	if log := openLog(o.Log); log != nil {
		defer func() { _ = log.Close() }()
		cmd.Stderr = log
	}
	p, err := hostexec.Start(cmd)
	_ = w.Close() // ours: the child's end is what tells us that it died
	if err != nil {
		return false, failed(o, err)
	}

	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, readErr := bufio.NewReader(io.LimitReader(r, maxReadyLine)).ReadString('\n')
	line = strings.TrimSpace(line)
	switch reason, isError := strings.CutPrefix(line, "error:"); {
	case line == "ready":
		return false, nil
	case strings.Contains(line, alreadyRunning):
		return true, nil
	case isError:
		return false, failed(o, errors.New(strings.TrimSpace(reason)))
	case ctx.Err() != nil:
		p.Kill() // half started is worse than not started: the next command shall find nothing
		return false, context.Cause(ctx)
	case errors.Is(readErr, io.EOF) && line == "":
		return false, failed(o, errors.New("it ended before it was ready"+endOf(p)))
	default:
		return false, failed(o, fmt.Errorf("it said %q", line))
	}
}

func failed(o Options, err error) error {
	return fault.New(fault.Unavailable, "the daemon did not start: %w", err).WithHint("see its log: %s", o.Log)
}

// endOf says how a daemon ended that has closed its pipe, if it has ended.
func endOf(p *hostexec.Process) string {
	select {
	case <-p.Done():
	case <-time.After(time.Second):
		return ""
	}
	if p.Err() == nil {
		return ""
	}
	return " (" + p.Err().Error() + ")"
}

// openLog opens the log for a daemon's stderr, or returns nil: a daemon that can't write its log says so itself.
func openLog(path string) *os.File {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil
	}
	return f
}
