package usernet

import (
	"encoding/binary"
	"net/netip"
)

// Mode is what a [Policy] does with an ordinary public address.
type Mode string

// The modes.
const (
	Open   Mode = "open"   // public addresses may be reached; the zero value means the same
	Closed Mode = "closed" // nothing may be reached but what is granted
)

// Policy says which addresses a guest may reach. The zero value is the default: the public Internet, and nothing that
// is only reachable because of where the host stands (itself, its private networks, its cloud's metadata).
//
// A grant opens a protected range only if it lies within that range: granting 0.0.0.0/0 does not open 10.0.0.0/8,
// granting 192.168.0.0/16 does not open the host's own 192.168.1.5, granting 192.168.1.5/32 does.
type Policy struct {
	Mode  Mode
	Allow []netip.Prefix // grants
	// ResolveClosed lets guests of mode Closed resolve public names. Queries are a way to send data out, so that
	// such guests get only the names of this network unless they are granted this.
	ResolveClosed bool
}

// Verdict is the answer to "may the guest reach this?".
type Verdict struct {
	Allowed bool
	Reason  string // why not: a few words, stable; empty if allowed
}

// protectedRange is a set of addresses that needs a grant of its own.
type protectedRange struct {
	prefix netip.Prefix
	reason string
}

// protectedRanges is what the default policy denies: special-purpose addresses that are local in some sense
// (IANA's registries of special-purpose addresses, RFC 6890) and the metadata services of clouds. The documentation
// and benchmarking ranges are not among them: there are networks that use them as public ones. The narrowest range
// that contains an address comes first, because it decides.
var protectedRanges = []protectedRange{ //nolint:gochecknoglobals // a constant table
	{netip.MustParsePrefix("169.254.169.254/32"), "cloud metadata"},
	{netip.MustParsePrefix("169.254.170.2/32"), "cloud metadata"},   // Amazon ECS task credentials
	{netip.MustParsePrefix("100.100.100.200/32"), "cloud metadata"}, // Alibaba
	{netip.MustParsePrefix("168.63.129.16/32"), "cloud metadata"},   // Azure's wire server, a public address
	{netip.MustParsePrefix("fd00:ec2::254/128"), "cloud metadata"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments"}, // RFC 6890; Oracle's metadata is 192.0.0.192
	{netip.MustParsePrefix("0.0.0.0/8"), "this host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private network"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private network"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private network"},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT"}, // RFC 6598
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::/128"), "this host"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local NAT64"}, // RFC 8215
	{netip.MustParsePrefix("fc00::/7"), "private network"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "private network"}, // RFC 3879, deprecated site-local
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")  //nolint:gochecknoglobals // a constant
	nat64     = netip.MustParsePrefix("64:ff9b::/96") //nolint:gochecknoglobals // a constant
	sixToFour = netip.MustParsePrefix("2002::/16")    //nolint:gochecknoglobals // a constant
	teredo    = netip.MustParsePrefix("2001::/32")    //nolint:gochecknoglobals // a constant
)

// Check decides about one destination. isHost says whether an address belongs to the host itself; it is asked only for
// addresses that nothing else denies.
func (p Policy) Check(dst netip.AddrPort, isHost func(netip.Addr) bool) Verdict {
	addr := dst.Addr()
	if !addr.IsValid() {
		return Verdict{Reason: "no address"}
	}
	addr = addr.WithZone("").Unmap()
	if inner, ok := embedded(addr); ok {
		if v := p.Check(netip.AddrPortFrom(inner, dst.Port()), isHost); !v.Allowed {
			return v
		}
	}
	for _, r := range protectedRanges {
		if r.prefix.Contains(addr) {
			if p.granted(addr, r.prefix) {
				break
			}
			return Verdict{Reason: r.reason}
		}
	}
	if isHost(addr) && !p.granted(addr, netip.PrefixFrom(addr, addr.BitLen())) && !grantedLoopback(p, addr) {
		return Verdict{Reason: "the host itself"}
	}
	switch p.Mode {
	case Open, "":
		return Verdict{Allowed: true}
	case Closed:
		if p.granted(addr, netip.PrefixFrom(addr, 0).Masked()) {
			return Verdict{Allowed: true}
		}
	}
	return Verdict{Reason: "closed network"}
}

// Resolves reports whether the guest may resolve public names.
func (p Policy) Resolves() bool { return p.Mode != Closed || p.ResolveClosed }

// granted reports whether a grant that lies within the range contains the address.
func (p Policy) granted(addr netip.Addr, within netip.Prefix) bool {
	for _, g := range p.Allow {
		g = unmapPrefix(g)
		if g.Contains(addr) && g.Bits() >= within.Bits() && within.Contains(g.Addr()) {
			return true
		}
	}
	return false
}

// grantedLoopback reports whether the address is a loopback one. Those are all the host's own, so that a grant of a
// part of 127.0.0.0/8, without which Check does not get here, says it all.
func grantedLoopback(p Policy, addr netip.Addr) bool {
	return addr.IsLoopback() && p.granted(addr, loopback4)
}

// unmapPrefix turns a grant of IPv4-mapped IPv6 addresses into one of IPv4 addresses.
func unmapPrefix(g netip.Prefix) netip.Prefix {
	if g.Addr().Is4In6() && g.Bits() >= 96 {
		return netip.PrefixFrom(g.Addr().Unmap(), g.Bits()-96)
	}
	return g
}

// embedded returns the IPv4 address that a router would reach through an IPv6 address of a transition mechanism:
// IPv4-compatible (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380, the client, obfuscated).
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() || addr.IsUnspecified() || addr == netip.IPv6Loopback() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	at := func(i int) (netip.Addr, bool) { return netip.AddrFrom4([4]byte(b[i : i+4])), true }
	switch {
	case binary.BigEndian.Uint64(b[:8]) == 0 && binary.BigEndian.Uint32(b[8:12]) == 0:
		return at(12)
	case nat64.Contains(addr):
		return at(12)
	case sixToFour.Contains(addr):
		return at(2)
	case teredo.Contains(addr):
		for i := 12; i < 16; i++ {
			b[i] ^= 0xff
		}
		return at(12)
	}
	return netip.Addr{}, false
}
