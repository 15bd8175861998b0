package cli

import (
	"fmt"
	"strings"

	bangerv1 "banger/internal/gen/banger/v1"
)

const publishUsage = "`host:guest` ports: the host's leads into the VM while it runs; 0: any that is free; behind 127.0.0.1 unless " +
	"written address:host:guest; /udp at the end: UDP; may be repeated"

// portMap is a port of the host that leads into a VM, for programs.
type portMap struct {
	Protocol    string `json:"protocol"`
	HostAddress string `json:"host_address"`
	GuestPort   uint32 `json:"guest_port"`
}

func published(vm *bangerv1.VM) []portMap {
	all := make([]portMap, len(vm.GetPublished()))
	for i, p := range vm.GetPublished() {
		all[i] = portMap{p.GetProtocol(), p.GetHostAddress(), p.GetGuestPort()}
	}
	return all
}

// publishedText lists published ports for people: as they are, or, if the VM does not run, as they will be.
func publishedText(vm *bangerv1.VM) string {
	var all []string
	for _, p := range vm.GetPublished() {
		all = append(all, fmt.Sprintf("%s -> %d/%s", p.GetHostAddress(), p.GetGuestPort(), p.GetProtocol()))
	}
	if len(all) == 0 {
		all = vm.GetSpec().GetPublish()
	}
	return strings.Join(all, ", ")
}
