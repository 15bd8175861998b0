package cli

import (
	"context"
	"io"
	"net"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newPorts(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:   "ports <vm>",
		Short: "Show what a VM listens on",
		Long: `Show the TCP and UDP ports that something in the VM listens on, and the address at which this host reaches each.

A UDP port is listed while a socket is bound to it and takes datagrams from anyone; clients' sockets may be among them.`,
		Example:           "  banger vm ports devbox\n  banger vm ports devbox --output json",
		Args:              oneVM,
		RunE:              func(cmd *cobra.Command, args []string) error { return runPorts(cmd.Context(), a, args[0], o) },
		ValidArgsFunction: completer{a}.oneVM,
	}
	o.register(cmd)
	return cmd
}

// portView is a port, for programs.
type portView struct {
	Protocol    string `json:"protocol"`
	Address     string `json:"address"`
	Port        uint32 `json:"port"`
	Process     string `json:"process"`      // empty: unknown
	HostAddress string `json:"host_address"` // empty: the host does not reach it
}

func runPorts(ctx context.Context, a *app, vm string, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.VMs.Ports(ctx, connect.NewRequest(&bangerv1.PortsRequest{Vm: vm}))
	if err != nil {
		return err
	}
	ports := make([]portView, len(res.Msg.GetPorts()))
	for i, p := range res.Msg.GetPorts() {
		ports[i] = portView{p.GetProtocol(), p.GetAddress(), p.GetPort(), p.GetProcess(), p.GetHostAddress()}
	}
	return o.write(a, ports, func(w io.Writer) error {
		t := &table{head: []string{"PROTOCOL", "ADDRESS", "PROCESS", "HOST ADDRESS"}}
		for _, p := range ports {
			t.add(p.Protocol, net.JoinHostPort(p.Address, strconv.FormatUint(uint64(p.Port), 10)), p.Process, p.HostAddress)
		}
		return t.write(w)
	})
}
