package usernet

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// hostAddrsMaxAge is how long a list of the host's addresses is believed. Interfaces come and go (VPNs, containers),
// and reading the list takes a fraction of a millisecond.
const hostAddrsMaxAge = 2 * time.Second

// hostAddrs knows the addresses of the host's own interfaces. Its lock guards the cached list.
type hostAddrs struct {
	mu   sync.Mutex
	read time.Time
	own  map[netip.Addr]struct{}
}

// contains reports whether an address is one of the host's own, or the broadcast address of one of its networks. If
// the list cannot be read and never could, every address counts as the host's: closed rather than open.
func (h *hostAddrs) contains(addr netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.read) > hostAddrsMaxAge {
		if addrs, err := net.InterfaceAddrs(); err == nil {
			h.own = ownAddrs(addrs)
			h.read = time.Now()
		} else if h.own == nil {
			return true
		}
	}
	_, found := h.own[addr]
	return found
}

func ownAddrs(addrs []net.Addr) map[netip.Addr]struct{} {
	own := make(map[netip.Addr]struct{}, 2*len(addrs))
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(ipnet.IP)
		if !ok {
			continue
		}
		ip = ip.Unmap()
		own[ip] = struct{}{}
		if ones, bits := ipnet.Mask.Size(); ip.Is4() && bits == 32 && ones < 31 {
			last := ip.As4()
			for i, m := range ipnet.Mask {
				last[i] |= ^m
			}
			own[netip.AddrFrom4(last)] = struct{}{}
		}
	}
	return own
}
