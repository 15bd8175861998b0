package usernet

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	maxResolvConf  = 64 << 10 // bytes that are read
	maxNameservers = 3        // MAXNS of resolv.conf(5)
)

// resolvConf reads the host's resolvers, and reads them again when the file has changed. Its lock guards the cache.
type resolvConf struct {
	path string

	mu       sync.Mutex
	modified time.Time
	size     int64
	list     []netip.AddrPort
}

// servers returns the resolvers; the local host, as resolv.conf(5) says, if the file names none or cannot be read.
func (c *resolvConf) servers() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if info, err := os.Stat(c.path); err == nil && (c.list == nil || !info.ModTime().Equal(c.modified) || info.Size() != c.size) {
		if f, err := os.Open(c.path); err == nil {
			b, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
			_ = f.Close()
			if err == nil {
				c.list, c.modified, c.size = parseResolvConf(b), info.ModTime(), info.Size()
			}
		}
	}
	if len(c.list) == 0 {
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)}
	}
	return c.list
}

// parseResolvConf returns the name servers of a resolv.conf(5).
func parseResolvConf(b []byte) []netip.AddrPort {
	list := []netip.AddrPort{}
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil && len(list) < maxNameservers {
			list = append(list, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	return list
}
