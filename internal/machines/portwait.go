package machines

import (
	"context"
	"slices"
	"time"

	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
)

// listens makes a condition of a TCP port of the guest. The guest's agent tells of its ports when they change; a watch that
// breaks off, as it does when the VM ends, is begun again after a pause, if the VM is running then.
func listens(s *core, port uint16) func(context.Context, Info) (<-chan time.Time, bool) {
	return func(ctx context.Context, info Info) (<-chan time.Time, bool) {
		a := s.table.attachment(info.ID)
		if info.State != microvm.Running || a == nil {
			return nil, false
		}
		watch, err := guestlink.NewClient(a.client).WatchPorts(ctx)
		if err != nil {
			return time.After(portPoll), false
		}
		defer watch.Close()
		for {
			ports, err := watch.Next()
			if err != nil {
				return time.After(portPoll), false
			}
			if slices.ContainsFunc(ports, func(p guestproto.Port) bool {
				return p.Protocol == guestproto.ProtocolTCP && p.Port == port
			}) {
				return nil, true
			}
		}
	}
}
