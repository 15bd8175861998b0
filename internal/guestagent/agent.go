// Package guestagent is what runs inside a guest: the init of the initramfs, and the agent that serves the host's requests
// (package guestproto). It owns the guest from the kernel's first process on: mounts, network address, identity, the
// processes it starts and the way down. It trusts the host, which owns the guest anyway, and nothing inside the guest.
//
// Roles, chosen by Main:
//
//   - process 1 of the initramfs: Boot prepares the root and then either becomes the agent (init mode "agent"), or starts
//     the agent as a process of its own and turns into the image's init ("systemd");
//   - the agent beside systemd: its argv[0] begins with "@", so that neither systemd's start nor its shutdown kills it
//     (systemd, "Storage Daemons for the Root File System");
//   - hosted: the agent on a descriptor that it inherits, touching nothing of the machine. For tests of the host's side.
//
// Lifecycle: Serve runs in its caller and has, per session, yamux's two goroutines and one per stream; the streams' end
// with the session, but a process that has to be hung up may take its grace longer. Locks: children.mu orders starting,
// signalling and reaping of processes, and is held over fork and exec; Agent.mu guards the environment and the boot id only.
package guestagent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// Version is the agent's version as told to the host. A release build sets it with -ldflags -X.
var Version = "dev" //nolint:gochecknoglobals // set by the linker only

// Link is the byte stream to the host. A read that fails with errHangup may be tried again: the host went away and may
// come back.
type Link interface {
	io.Reader
	io.Writer
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

var errHangup = errors.New("the host closed the link")

// System is what an agent may do to the machine it runs on.
type System interface {
	// Renew reseeds the kernel's random numbers and makes the clock no earlier than the preamble says. It is called
	// before a session serves anything; after an error the session serves nothing at all, for a copy of the guest may
	// have the same random numbers.
	Renew(p guestproto.Preamble) error
	// Identify sets what is set in id, the environment aside.
	Identify(id guestproto.Identity) error
	// Grow makes the file system of a disk fill the disk.
	Grow(ctx context.Context, spec guestproto.GrowSpec) error
	// Shutdown begins to go down and returns.
	Shutdown(spec guestproto.ShutdownSpec)
	// Console opens what the main process writes to. The caller closes it.
	Console() *os.File
	// Home is the directory that the work disk is mounted at.
	Home() string
}

// Agent serves the requests of the host.
type Agent struct {
	mode     string
	system   System
	children *children

	mu     sync.Mutex
	env    []string // of every command, on top of the base environment
	bootID string   // as it was given; empty: the kernel's own

	main     mainProcess
	accepted accepted
}

// New returns an agent. mode is what Hello.Init says.
func New(mode string, system System, kids *children) *Agent {
	return &Agent{mode: mode, system: system, children: kids}
}

// Serve answers preambles and serves their sessions, one after the other, until the link ends (nil) or the context does.
// A preamble in the midst of a session ends that session and starts the next.
func (a *Agent) Serve(ctx context.Context, link Link) error {
	defer context.AfterFunc(ctx, func() { _ = link.SetReadDeadline(time.Unix(1, 0)) })()
	r := bufio.NewReaderSize(link, 2*guestproto.MaxMuxFrame)
	for {
		p, err := guestproto.ReadPreamble(r)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errHangup):
			continue
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			return nil
		case err != nil:
			return err
		}
		if err := a.session(ctx, link, r, p); err != nil && ctx.Err() == nil && !errors.Is(err, errHangup) {
			return err
		}
	}
}

// session answers one preamble and serves until the session has ended, whatever ended it. Its error is that of the answer.
func (a *Agent) session(ctx context.Context, link Link, r *bufio.Reader, p guestproto.Preamble) error {
	if err := a.system.Renew(p); err != nil {
		console := a.system.Console()
		_, _ = fmt.Fprintf(console, "\nbanger-guest: serve nobody: %v\n", err)
		_ = console.Close()
		return nil // the next preamble may fare better
	}
	answer, err := guestproto.AppendAnswer(nil, p.ID, a.hello())
	if err != nil {
		return err
	}
	if _, err := link.Write(answer); err != nil {
		return err
	}
	unblock := func() error {
		return errors.Join(link.SetReadDeadline(time.Unix(1, 0)), link.SetWriteDeadline(time.Unix(1, 0)))
	}
	mux, err := yamux.Server(guestproto.NewMuxConn(guestproto.GuestSide, r, link, unblock), guestproto.MuxConfig())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = mux.Close() })()
	for {
		stream, err := mux.AcceptStream()
		if err != nil {
			break
		}
		go a.serve(ctx, guestproto.NewStream(stream))
	}
	_ = mux.Close() // returns when both of yamux's goroutines have let go of the link
	_ = link.SetWriteDeadline(time.Time{})
	if ctx.Err() == nil {
		_ = link.SetReadDeadline(time.Time{})
	}
	return nil
}

func (a *Agent) hello() guestproto.Hello {
	h := guestproto.Hello{
		Agent: Version, Protocol: guestproto.Version, Kernel: kernelRelease(), Pid: os.Getpid(), Init: a.mode,
	}
	a.mu.Lock()
	h.BootID = a.bootID
	a.mu.Unlock()
	if h.BootID == "" {
		id, _ := os.ReadFile(bootIDFile)
		h.BootID = strings.TrimSpace(string(id))
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) == nil {
		h.UptimeNS = now.Nano()
	}
	return h
}

func kernelRelease() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // can only fail for a bad pointer
	return unix.ByteSliceToString(u.Release[:])
}

// stream is a request that is being served.
type stream struct {
	conn *guestproto.Stream
	r    *guestproto.Reader
	w    *guestproto.Writer
}

func (a *Agent) serve(ctx context.Context, conn *guestproto.Stream) {
	defer conn.Close() //nolint:errcheck // always nil
	s := &stream{conn: conn, r: guestproto.NewReader(conn), w: guestproto.NewWriter(conn)}
	f, err := s.r.Next(guestproto.MaxRequest)
	if err != nil {
		return
	}
	var req guestproto.Request
	if err = f.Decode(&req); err == nil && f.Type == guestproto.FrameRequest {
		err = a.dispatch(ctx, s, req)
	}
	if err != nil {
		_ = s.w.JSON(guestproto.FrameError, guestproto.Error{
			Kind: fault.KindOf(err).String(), Message: clip(err.Error(), guestproto.MaxPayload/8),
		})
	}
}

func clip(s string, limit int) string {
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}

// dispatch carries a request out. An error that it returns is told to the host.
func (a *Agent) dispatch(ctx context.Context, s *stream, req guestproto.Request) error {
	switch req.Op {
	case guestproto.OpExec:
		return with(req, func(spec guestproto.ExecSpec) error { return a.exec(ctx, s, spec) })
	case guestproto.OpMain:
		return s.done(with(req, a.startMain))
	case guestproto.OpGet:
		return with(req, func(spec guestproto.GetSpec) error { return get(ctx, s, spec) })
	case guestproto.OpDial:
		return with(req, func(spec guestproto.DialSpec) error { return a.dial(ctx, s, spec) })
	case guestproto.OpListen:
		return with(req, func(spec guestproto.ListenSpec) error { return a.listen(ctx, s, spec) })
	case guestproto.OpPut:
		return s.done(with(req, func(spec guestproto.PutSpec) error { return put(s, spec, a.system.Home()) }))
	case guestproto.OpConfigure:
		return s.done(with(req, a.configure))
	case guestproto.OpGrow:
		return s.done(with(req, func(spec guestproto.GrowSpec) error {
			ctx, cancel := s.abandoned(ctx)
			defer cancel()
			return a.system.Grow(ctx, spec)
		}))
	case guestproto.OpPing:
		return s.done(nil)
	case guestproto.OpSync:
		unix.Sync()
		return s.done(nil)
	case guestproto.OpStats:
		stats, err := realProcfs().stats()
		if err != nil {
			return err
		}
		return s.w.JSON(guestproto.FrameAnswer, stats)
	case guestproto.OpPorts:
		return with(req, func(spec guestproto.PortsSpec) error { return ports(ctx, s, spec) })
	case guestproto.OpShutdown:
		return with(req, func(spec guestproto.ShutdownSpec) error { return a.shutdown(s, spec) })
	default:
		return fault.New(fault.Unsupported, "the agent does not know the request %q", req.Op)
	}
}

// with decodes the arguments of a request.
func with[T any](req guestproto.Request, handle func(T) error) error {
	var args T
	if err := json.Unmarshal(req.Args, &args); err != nil {
		return fault.New(fault.Invalid, "bad arguments of %s: %w", req.Op, err)
	}
	return handle(args)
}

func (s *stream) done(err error) error {
	if err != nil {
		return err
	}
	return s.w.Frame(guestproto.FrameDone, nil)
}

// abandoned returns a context that ends when the host gives the stream up. Only for streams on which the host sends
// nothing more.
func (s *stream) abandoned(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = s.r.Next(0)
	}()
	return ctx, cancel
}

func (a *Agent) shutdown(s *stream, spec guestproto.ShutdownSpec) error {
	if spec.How != guestproto.PowerOff && spec.How != guestproto.Reboot {
		return fault.New(fault.Invalid, "unknown way to shut down %q", spec.How)
	}
	err := s.done(nil)
	a.main.stop(spec)
	a.system.Shutdown(spec)
	return err
}

func (a *Agent) configure(id guestproto.Identity) error {
	if id.Hostname != "" {
		if err := guestproto.CheckHostname(id.Hostname); err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
	}
	if id.MachineID != "" {
		if err := guestproto.CheckMachineID(id.MachineID); err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
	}
	if id.BootID != "" {
		if err := guestproto.CheckBootID(id.BootID); err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
	}
	if len(id.Entropy) > maxEntropy {
		return fault.New(fault.Invalid, "more than %d bytes of entropy", maxEntropy)
	}
	if id.Env != nil {
		if err := checkEnv(id.Env); err != nil {
			return err
		}
		a.mu.Lock()
		a.env = id.Env
		a.mu.Unlock()
	}
	if err := a.system.Identify(id); err != nil {
		return err
	}
	if id.BootID != "" {
		a.mu.Lock()
		a.bootID = id.BootID
		a.mu.Unlock()
	}
	return nil
}

// maxEntropy is how many bytes of entropy are taken at once: the kernel's pool has 256 bits.
const maxEntropy = 512
