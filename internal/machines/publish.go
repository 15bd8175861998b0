package machines

import (
	"context"

	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// checkPorts refuses a start whose published ports can't be had, before anything is done for it. The monitor opens them
// itself: they are its own from before the guest boots until it ends.
func (h *hold) checkPorts(ctx context.Context) error {
	sockets, err := monitorlink.Listen(h.vm.Spec.Publish)
	monitorlink.CloseAll(sockets)
	if !fault.Is(err, fault.Exists) {
		return err
	}
	for _, a := range h.table.attachments() {
		st, _ := a.get()
		for _, p := range h.vm.Spec.Publish {
			if taken(st.Published, p) {
				other, lookup := h.store.Get(ctx, a.id)
				if lookup != nil {
					return err
				}
				return fault.New(fault.Exists, "the port %s/%s of this host is published for VM %s", p.Host(), p.Protocol, other.Name).
					WithHint("stop that VM, or publish another port")
			}
		}
	}
	return err
}

func taken(by []monitorlink.Published, p microvm.Publish) bool {
	for _, q := range by {
		if q.Protocol == p.Protocol && q.Host.Port() == p.HostPort &&
			(q.Host.Addr() == p.Address || q.Host.Addr().IsUnspecified() || p.Address.IsUnspecified()) {
			return true
		}
	}
	return false
}
