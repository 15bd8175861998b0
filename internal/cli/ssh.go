package cli

import (
	"context"
	"net"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/config"
	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/hostexec"
	"banger/internal/rpcclient"
	"banger/internal/sshclient"
	"banger/internal/sshserver"
)

func newSSH(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh <vm> [ssh options] [-- command...]",
		Short: "Log in to a VM with your own ssh, whatever its image has",
		Long: `Log in to a running VM with this machine's own ssh client, or run a command there. The image needs no SSH server and no
keys: banger serves SSH itself, over the VM's link, and no port is opened. Whatever follows the VM is for ssh: its options, and a
command.

As user@vm, you are that user. Without --, what is no option begins the command, as ssh has it.

For "ssh devbox.vm", for scp, sftp, rsync, git and editors: banger ssh-config --install.`,
		Example: `  banger ssh devbox
  banger ssh devbox -- uname -a
  banger ssh devbox -A -L 8080:localhost:80
  banger ssh nobody@devbox -- id`,
		DisableFlagParsing: true, // ssh's own
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && (args[0] == "-h" || args[0] == "--help"):
				return cmd.Help()
			case len(args) == 0:
				return usagef("%s needs a VM", cmd.CommandPath()).withHint("%s", cmd.UseLine())
			case strings.HasPrefix(args[0], "-"):
				return usagef("%s is given the VM first, then ssh's options", cmd.CommandPath()).withHint("%s", cmd.UseLine())
			}
			return runSSH(cmd.Context(), a, args[0], args[1:])
		},
		ValidArgsFunction: completer{a}.oneVM,
	}
}

// runSSH turns this process into ssh.
func runSSH(ctx context.Context, a *app, to string, args []string) error {
	user, name, found := strings.Cut(to, "@")
	if !found {
		user, name = "", to
	}
	if found && (user == "" || strings.HasPrefix(user, "-")) {
		return usagef("bad user in %q", to).withHint("banger ssh user@vm")
	}
	ssh, err := hostexec.Look("ssh", "openssh-client")
	if err != nil {
		return err
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	vm, err := runningVM(ctx, client, strings.TrimSuffix(name, sshclient.Domain))
	if err != nil {
		return err
	}
	setup, err := sshSetup(a)
	if err != nil {
		return err
	}
	options, err := setup.Options()
	if err != nil {
		return err
	}
	var argv []string
	if user != "" {
		argv = append(argv, "-l", user) // before the others: the first one counts
	}
	for _, o := range options {
		argv = append(argv, "-o", o)
	}
	argv = append(append(argv, vm.GetName()+sshclient.Domain), args...)
	a.close()
	return hostexec.Become(ssh, argv)
}

// runningVM returns a VM that is running, or will be when it is reached for, by its name, id or the beginning of its id.
func runningVM(ctx context.Context, client *rpcclient.Client, ref string) (*bangerv1.VM, error) {
	res, err := client.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetRequest{Vm: ref}))
	if err != nil {
		return nil, err
	}
	vm := res.Msg.GetVm()
	if vm.GetState() != "running" && vm.GetState() != "suspended" {
		return nil, fault.New(fault.Precondition, "VM %s is not running: it is %s", vm.GetName(), vm.GetState()).
			WithHint("start it: banger start %s", vm.GetName())
	}
	return vm, nil
}

// sshSetup says how the user's ssh gets here. The keys are made if they are not there.
func sshSetup(a *app) (sshclient.Setup, error) {
	paths, err := a.paths()
	if err != nil {
		return sshclient.Setup{}, err
	}
	keys, err := openKeys(paths)
	if err != nil {
		return sshclient.Setup{}, err
	}
	if a.sys.Executable == "" {
		return sshclient.Setup{}, fault.New(fault.Internal, "the path of this program is not known")
	}
	return sshclient.Setup{Banger: a.sys.Executable, Identity: keys.Identity(), KnownHosts: keys.KnownHosts()}, nil
}

func openKeys(paths config.Paths) (*sshserver.Keys, error) {
	if err := paths.EnsureDirs(); err != nil {
		return nil, err
	}
	return sshserver.OpenKeys(paths.SSH(), sshclient.Pattern)
}

// newSSHProxy is the other end of ssh's connection: what its ProxyCommand runs.
func newSSHProxy(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "ssh-proxy <vm>",
		Short:  "Serve SSH on standard input and output, on behalf of a VM",
		Hidden: true,
		Args:   oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSSHProxy(cmd.Context(), a, strings.TrimSuffix(args[0], sshclient.Domain))
		},
	}
}

func runSSHProxy(ctx context.Context, a *app, ref string) error {
	in, inOK := a.sys.Stdin.(*os.File)
	out, outOK := a.sys.Stdout.(*os.File)
	if !inOK || !outOK || isTerminal(in) {
		return usagef("ssh-proxy is for ssh to run").withHint("banger ssh %s", ref)
	}
	paths, err := a.paths()
	if err != nil {
		return err
	}
	keys, err := openKeys(paths)
	if err != nil {
		return err
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	vm, err := runningVM(ctx, client, ref)
	if err != nil {
		return err
	}
	return sshserver.Serve(ctx, &stdioConn{in: in, out: out}, keys, &sshGuest{client: client, vm: vm.GetId()})
}

// stdioConn is the connection that ssh gives its ProxyCommand.
type stdioConn struct {
	net.Conn // nil: addresses and deadlines, for which there is no use

	in, out *os.File
}

func (c *stdioConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *stdioConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func (c *stdioConn) RemoteAddr() net.Addr { return &net.UnixAddr{Name: "ssh", Net: "unix"} }
func (c *stdioConn) LocalAddr() net.Addr  { return &net.UnixAddr{Name: "banger", Net: "unix"} }

// Close ends what waits in Read and Write. A descriptor that can't be polled keeps its reader; the end of the process is what ends
// that.
func (c *stdioConn) Close() error {
	_ = c.in.Close()
	return c.out.Close()
}

// sshGuest is a VM as the SSH server sees it.
type sshGuest struct {
	client *rpcclient.Client
	vm     string
}

func (g *sshGuest) Exec(ctx context.Context, c sshserver.Command, s sshserver.Streams) (sshserver.Exit, error) {
	spec := &bangerv1.ExecSpec{
		Args: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, Tty: c.TTY, Term: c.Term, Stdin: true,
	}
	if c.TTY {
		spec.Size = windowOf(c.Size)
	}
	sizes := make(chan *bangerv1.WindowSize)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case size := <-s.Sizes:
				select {
				case sizes <- windowOf(size):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	exit, err := g.client.Exec(ctx, g.vm, spec, rpcclient.Streams{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Signals: s.Signals, Sizes: sizes, Started: s.Started,
	})
	if err != nil {
		return sshserver.Exit{}, commandFault(err)
	}
	return sshserver.Exit{Code: int(exit.GetCode()), Signal: int(exit.GetSignal())}, nil
}

// windowOf bounds a size to what a terminal can have, ioctl_tty(2).
func windowOf(s sshserver.Size) *bangerv1.WindowSize {
	return &bangerv1.WindowSize{Rows: min(s.Rows, 1<<16-1), Cols: min(s.Cols, 1<<16-1)}
}

// commandFault keeps the kinds NotFound and Denied for what concerns the command.
func commandFault(err error) error {
	switch statusOf(err) {
	case exitNotFound:
		return fault.New(fault.NotFound, "%w", err)
	case exitNotExecutable:
		return fault.New(fault.Denied, "%w", err)
	}
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) {
		return fault.New(fault.Unavailable, "%w", err)
	}
	return err
}

func (g *sshGuest) Dial(ctx context.Context, network, address string) (sshserver.Conn, error) {
	conn, err := g.client.Dial(ctx, g.vm, network, address)
	if err != nil {
		return nil, err // a typed nil would be a connection
	}
	return conn, nil
}

func (g *sshGuest) Listen(ctx context.Context, network, address, user string) (net.Listener, error) {
	ln, err := g.client.Listen(ctx, g.vm, network, address, user)
	if err != nil {
		return nil, err // a typed nil would be a listener
	}
	return ln, nil
}

// proxyEnv is what of the environment decides which daemon is meant, and may differ where ssh is run later.
func proxyEnv(a *app) []string {
	var env []string
	for _, name := range []string{"BANGER_CONFIG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"} {
		if v := a.env(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}
