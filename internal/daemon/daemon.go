// Package daemon is the root of the daemon: one function that makes the services and runs them until it is told to end.
// It owns the daemon's lock, socket and log, and adapts mechanisms to what the services ask for. VMs are processes of
// their own: they go on when the daemon ends, however it ends, and the next daemon takes them over.
//
// Shutdown order: the API stops answering and no operation begins any more, those under way end or are cancelled, then the
// services' goroutines end, then the database is closed, then the lock
// is given back.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/cgroup"
	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/homefiles"
	"banger/internal/machines"
	"banger/internal/operations"
	"banger/internal/rpcapi"
	"banger/internal/store"
	"banger/internal/workspaces"
)

// Options is what the daemon is told by whoever starts it.
type Options struct {
	Config config.Config
	Guest  string       // path of the guest agent's binary
	Ready  func() error // called once when the daemon answers
	Log    *slog.Logger
}

// Run runs the daemon until the context ends or a client shuts it down.
func Run(ctx context.Context, o Options) error {
	unix.Umask(0o077)
	paths := o.Config.Paths
	if err := paths.EnsureDirs(); err != nil {
		return err
	}
	lock, err := takeLock(paths)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // nothing to flush
	listener, err := listen(ctx, paths.Socket())
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // the server closes it
	db, err := store.Open(ctx, paths.DB())
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // nothing is under way by then

	o.Log = slog.New(operations.LogHandler(o.Log.Handler()))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	im := newImages(o, db)
	ks := newKernels(o, db, im)
	host, err := newHost()
	if err != nil {
		return err
	}
	cgroups, noCgroups := cgroup.Find()
	st, so, ho := breakable(db, sources{im, ks, o.Guest}, host)
	templates := machines.TemplateConfig{Dir: paths.Templates(), MaxSize: o.Config.Template.MaxSize.Value, Delay: templateDelay}
	templates.Ready, templates.ReadyMemory = o.Config.Template.Ready.Value, o.Config.Template.ReadyMemory.Value
	if !o.Config.Template.Enabled.Value {
		templates.Dir = ""
	}
	vms := machines.New(machines.Config{
		VMs: paths.VMs(), Runtime: paths.VMRuntimes(), Defaults: o.Config.VM.Spec(), EgressAllow: o.Config.Network.Allow.Value,
		Home:       homefiles.New(o.Config.Home, os.Getenv("HOME")),
		HostMemory: config.HostMemory(), Overcommit: o.Config.Daemon.MemoryOvercommit.Value,
		Cgroups: cgroups, NoCgroups: noCgroups, Templates: templates, Forks: paths.Forks(), Workspaces: db,
	}, st, so, ho, o.Log)
	ws := workspaces.New(paths.Workspaces(), db, o.Log)
	self := &self{options: o, machines: vms, images: im, kernels: ks, host: host, started: time.Now(), stop: cancel}

	// The services go on until the operations, which need them, have ended.
	var services, work sync.WaitGroup
	servicesCtx, endServices := context.WithCancel(context.WithoutCancel(ctx))
	ops := operations.New(o.Log)
	defer services.Wait()
	defer endServices()
	defer work.Wait()
	defer cancel()
	services.Go(func() { vms.Run(servicesCtx) })
	services.Go(func() { host.warm(servicesCtx, o.Log) })
	work.Go(func() { ops.Run(ctx, drainTimeout) })
	if err := errors.Join(im.Recover(ctx), ks.Recover(ctx), ws.Recover(ctx), vms.Recover(ctx)); err != nil {
		o.Log.Error("recover", "err", err) // what could not be mended stays findable; the rest works
	}
	return serve(ctx, listener, rpcapi.Handler(rpcapi.Services{
		Machines: vms, Images: im, Kernels: ks, Workspaces: ws, Operations: ops, Journal: db.Journal(), System: self,
	}), o)
}

// templateDelay is how long the making of a template waits, so that it is not in the way of the command of the VM before it.
const templateDelay = 3 * time.Second

// drainTimeout is how long calls under way may take to end when the daemon does.
const drainTimeout = 2 * time.Second

func serve(ctx context.Context, ln net.Listener, h http.Handler, o Options) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler: h, Protocols: &protocols, HTTP2: rpcapi.HTTP2(), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	if err := o.Ready(); err != nil {
		_ = server.Close()
		return fmt.Errorf("say that the daemon is ready: %w", err)
	}
	o.Log.Info("daemon ready", "pid", os.Getpid(), "socket", ln.Addr().String())
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	// A stream that a client holds open does not end by itself; after the drain time it is cut.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		_ = server.Close()
	}
	o.Log.Info("daemon ended")
	return nil
}

// listen makes the daemon's socket. The caller holds the lock, so a socket that is there is a dead daemon's.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path) // mode 0600 by the umask, from the first moment
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm()&0o077 != 0 {
		_ = ln.Close()
		return nil, errors.Join(err, fault.New(fault.Denied, "the socket %s is open to others", path))
	}
	return ln, nil
}

// exePath is where the running program is, also after an upgrade has replaced the file: the new one is then used.
func exePath() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	const deleted = " (deleted)" // proc(5), /proc/pid/exe
	if len(exe) > len(deleted) && exe[len(exe)-len(deleted):] == deleted {
		exe = exe[:len(exe)-len(deleted)]
	}
	return filepath.Clean(exe), nil
}

// residentMemory returns the resident set size of this process in bytes, proc(5), /proc/pid/statm.
func residentMemory() int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(syscall.Getpagesize())
}
