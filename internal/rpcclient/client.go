// Package rpcclient reaches the daemon: it connects to the daemon's unix socket, starts the daemon if nobody listens
// there, and turns the errors of the API back into those of package fault.
//
// It owns the connection and the race to start a daemon. It owns no command, prints nothing, and knows no paths but
// those it is given. A [Client] may be used from several goroutines; each of its streams has the rules of Connect
// (one sender, one receiver).
package rpcclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/gen/banger/v1/bangerv1connect"
)

const (
	// statusTimeout bounds the first call. A daemon does next to nothing for it, so one that needs longer hangs.
	statusTimeout = 10 * time.Second
	// startTimeout bounds a daemon's start, which may have to migrate a database and adopt every running VM.
	startTimeout = 60 * time.Second
	// Between tries to reach a daemon that is starting or ending.
	retryFirst = 10 * time.Millisecond
	retryMost  = 200 * time.Millisecond

	// baseURL names no host: every connection goes to the socket.
	baseURL = "http://banger"
)

// Options says where the daemon is and how it is started.
type Options struct {
	Socket string // path of the daemon's unix socket
	Log    string // path of the daemon's log, for errors, and for what a daemon that we start says on stderr
	// Start is the command line that runs a daemon, program first; nil: never start one.
	Start []string
}

// Client is a connection to a daemon that has answered.
type Client struct {
	VMs        bangerv1connect.VMServiceClient
	Operations bangerv1connect.OperationServiceClient
	Events     bangerv1connect.EventServiceClient
	Images     bangerv1connect.ImageServiceClient
	Kernels    bangerv1connect.KernelServiceClient
	Snapshots  bangerv1connect.SnapshotServiceClient
	Templates  bangerv1connect.TemplateServiceClient
	Workspaces bangerv1connect.WorkspaceServiceClient
	System     bangerv1connect.SystemServiceClient
	// Status is what the daemon said of itself when the connection was made.
	Status *bangerv1.StatusResponse

	transport *http.Transport
}

// Connect returns a client of the daemon, which it starts if it is not there and o.Start allows it. Every error of the
// client's calls is a *[fault.Error]; those that came from the daemon wrap a *[Remote]. The errors of Connect are
// Unavailable (not running and not to be started, or it could not be started) and Timeout (it does not answer).
func Connect(ctx context.Context, o Options) (*Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout,
		fault.New(fault.Timeout, "a daemon is running, and did not answer on %s within %s", o.Socket, startTimeout).
			WithHint("if it was started with another XDG_RUNTIME_DIR, use that; else see its log: %s", o.Log))
	defer cancel()
	// A daemon that is just ending, or one that another command has just started, is neither there nor absent: it holds
	// its lock and does not listen, or takes a connection and drops it. That passes.
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		c, err := attempt(ctx, o)
		if !errors.Is(err, errInBetween) {
			return c, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// errInBetween says that a daemon is there and cannot be talked to yet, or no more.
var errInBetween = errors.New("the daemon is starting or ending")

// attempt makes one try to reach a daemon that answers.
func attempt(ctx context.Context, o Options) (*Client, error) {
	conn, err := dial(ctx, o.Socket)
	if absent(err) && len(o.Start) > 0 {
		var lost bool
		if lost, err = start(ctx, o); err != nil {
			return nil, err
		}
		conn, err = dial(ctx, o.Socket)
		if lost && absent(err) {
			return nil, errInBetween
		}
	}
	switch {
	case absent(err):
		return nil, fault.New(fault.Unavailable, "the daemon is not running").WithHint("start it: banger daemon run")
	case err != nil:
		return nil, classify("connect to the daemon", err)
	}

	c := newClient(o.Socket, conn)
	ctx, cancel := context.WithTimeoutCause(ctx, statusTimeout,
		fault.New(fault.Timeout, "the daemon does not answer").WithHint("see its log: %s", o.Log))
	defer cancel()
	status, err := c.System.Status(ctx, connect.NewRequest(&bangerv1.StatusRequest{}))
	if err != nil {
		c.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if dropped(err) {
			return nil, errInBetween
		}
		return nil, fmt.Errorf("ask the daemon for its status: %w", err)
	}
	c.Status = status.Msg
	return c, nil
}

// dropped reports whether a call failed because the daemon's end of the connection went away. What HTTP/2 makes of a reset
// connection is a cancelled call.
func dropped(err error) bool {
	return fault.Is(err, fault.Canceled) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || absent(err)
}

// Close ends the connection.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// newClient makes a client over a connection that is there already; should it break, the next call dials again.
func newClient(socket string, first net.Conn) *Client {
	var ready atomic.Pointer[net.Conn]
	ready.Store(&first)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true) // streams in both directions need HTTP/2
	t := &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if conn := ready.Swap(nil); conn != nil {
				return *conn, nil
			}
			return dial(ctx, socket)
		},
	}
	options := connect.WithClientOptions(
		connect.WithInterceptors(faults{}),
		connect.WithAcceptCompression("gzip", nil, nil), // pointless on one machine
	)
	h := &http.Client{Transport: t}
	return &Client{
		VMs:        bangerv1connect.NewVMServiceClient(h, baseURL, options),
		Operations: bangerv1connect.NewOperationServiceClient(h, baseURL, options),
		Events:     bangerv1connect.NewEventServiceClient(h, baseURL, options),
		Images:     bangerv1connect.NewImageServiceClient(h, baseURL, options),
		Kernels:    bangerv1connect.NewKernelServiceClient(h, baseURL, options),
		Snapshots:  bangerv1connect.NewSnapshotServiceClient(h, baseURL, options),
		Templates:  bangerv1connect.NewTemplateServiceClient(h, baseURL, options),
		Workspaces: bangerv1connect.NewWorkspaceServiceClient(h, baseURL, options),
		System:     bangerv1connect.NewSystemServiceClient(h, baseURL, options),
		transport:  t,
	}
}

func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// absent reports whether a failure to connect means that no daemon is there: no socket, or one that a daemon left
// behind when it was killed.
func absent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

func classify(doing string, err error) error {
	kind := fault.KindOf(err)
	switch {
	case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM):
		kind = fault.Denied
	case errors.Is(err, syscall.EINVAL):
		// The path of a unix socket has room for 107 bytes (unix(7)).
		return fault.New(fault.Invalid, "%s: %w", doing, err).
			WithHint("the path of the socket may be too long: set XDG_RUNTIME_DIR to a shorter directory")
	case kind == fault.Internal:
		kind = fault.Unavailable
	}
	return fault.New(kind, "%s: %w", doing, err)
}
