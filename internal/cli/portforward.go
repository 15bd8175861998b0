package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/relay"
)

func newPortForward(a *app) *cobra.Command {
	var udp, lines bool
	cmd := &cobra.Command{
		Use:   "port-forward <vm> [local:]port...",
		Short: "Reach ports of a VM from here, until Ctrl-C",
		Long: `Reach ports of a running VM at this host's loopback address, until Ctrl-C. A port is that of a server in the VM, also of one
that listens on the VM's own loopback address only. The port here is the same unless another is given; 0 means any that is
free. The addresses are printed first.

Ports that are to stay for as long as the VM runs are published: banger run --publish.`,
		Example: `  banger vm port-forward devbox 3000
  banger vm port-forward devbox 8080:80 5432
  banger vm port-forward --udp devbox 5353:53`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("%s needs a VM and a port", cmd.CommandPath()).withHint("%s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f := &forwarding{app: a, vm: args[0], network: "tcp", lines: lines}
			if udp {
				f.network = "udp"
			}
			return f.run(cmd.Context(), args[1:])
		},
		ValidArgsFunction: completer{a}.oneVM,
	}
	cmd.Flags().BoolVar(&udp, "udp", false, "the ports are UDP's")
	cmd.Flags().BoolVar(&lines, "json", false, "print a line of JSON for each port")
	return cmd
}

// portPair is a port here and the one in the VM that it leads to.
type portPair struct{ local, remote uint16 }

func parsePair(text string) (portPair, error) {
	local, remote, found := strings.Cut(text, ":")
	if !found {
		remote = local
	}
	l, lerr := strconv.ParseUint(local, 10, 16)
	r, rerr := strconv.ParseUint(remote, 10, 16)
	if lerr != nil || rerr != nil || r == 0 {
		return portPair{}, usagef("bad port %q", text).withHint("write port or local:port, numbers up to 65535")
	}
	return portPair{uint16(l), uint16(r)}, nil // bounded by ParseUint
}

// forwarding is a port-forward under way.
type forwarding struct {
	app     *app
	vm      string
	network string // tcp, udp
	lines   bool
}

// forwardSocket is one open port here.
type forwardSocket struct {
	pair portPair
	addr net.Addr
	// run carries until the context ends.
	run func(ctx context.Context) error
	io.Closer
}

func (f *forwarding) run(ctx context.Context, args []string) error {
	pairs := make([]portPair, len(args))
	for i, text := range args {
		var err error
		if pairs[i], err = parsePair(text); err != nil {
			return err
		}
	}
	client, err := f.app.connect(ctx)
	if err != nil {
		return err
	}
	vm, err := runningVM(ctx, client, f.vm)
	if err != nil {
		return err
	}
	sockets := make([]forwardSocket, 0, len(pairs))
	defer func() {
		for _, s := range sockets {
			_ = s.Close()
		}
	}()
	for _, pair := range pairs {
		dial := func(ctx context.Context) (net.Conn, error) {
			conn, err := client.Dial(ctx, vm.GetId(), f.network, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(pair.remote))))
			if err != nil {
				f.app.note("%v", err)
				return nil, err // a typed nil would be a connection
			}
			return conn, nil
		}
		s, err := f.listen(ctx, pair, dial)
		if err != nil {
			return fault.New(fault.KindOf(err), "forward port %d: %w", pair.local, err).
				WithHint("choose another local port, or any: 0:%d", pair.remote)
		}
		sockets = append(sockets, s)
	}
	for _, s := range sockets {
		if err := f.tell(vm.GetName(), s); err != nil {
			return err
		}
	}
	ended := make(chan error, len(sockets))
	ctx, cancel := context.WithCancelCause(ctx)
	for _, s := range sockets {
		go func() { ended <- s.run(ctx) }()
	}
	first := <-ended
	cancel(first)
	for range len(sockets) - 1 {
		if err := <-ended; first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	return context.Cause(ctx)
}

func (f *forwarding) listen(ctx context.Context, pair portPair, dial relay.Dial) (forwardSocket, error) {
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(pair.local)))
	var lc net.ListenConfig
	log := slog.New(slog.DiscardHandler) // dial tells the user
	if f.network == "udp" {
		pc, err := lc.ListenPacket(ctx, "udp", at)
		if err != nil {
			return forwardSocket{}, err
		}
		return forwardSocket{pair, pc.LocalAddr(), func(ctx context.Context) error { return relay.Datagrams(ctx, pc, dial, log) }, pc}, nil
	}
	ln, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		return forwardSocket{}, err
	}
	return forwardSocket{pair, ln.Addr(), func(ctx context.Context) error { return relay.Streams(ctx, ln, dial, log) }, ln}, nil
}

// forwardView is a forwarded port, for programs.
type forwardView struct {
	Protocol    string `json:"protocol"`
	HostAddress string `json:"host_address"`
	GuestPort   uint16 `json:"guest_port"`
}

func (f *forwarding) tell(name string, s forwardSocket) error {
	if f.lines {
		return writeJSONLine(f.app.sys.Stdout, forwardView{f.network, s.addr.String(), s.pair.remote})
	}
	return f.app.printLine(fmt.Sprintf("%s leads to port %d/%s of %s", s.addr, s.pair.remote, f.network, name))
}
