package microvm

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"banger/internal/fault"
)

// Publish is a port of the host that leads to a port of the guest for as long as the VM runs.
type Publish struct {
	Address   netip.Addr // of the host
	HostPort  uint16     // 0: the kernel chooses one at each start
	GuestPort uint16
	Protocol  string // ProtocolTCP or ProtocolUDP
}

// The protocols of published ports.
const (
	ProtocolTCP = "tcp"
	ProtocolUDP = "udp"
)

// MaxPublish is how many ports of one VM can be published.
const MaxPublish = 64

const publishHint = "write [address:]hostport:guestport, and /udp behind it for UDP; hostport 0: any that is free"

// ParsePublish reads "[address:]hostport:guestport[/udp]". Without an address it is 127.0.0.1, so that only this host gets
// in; an IPv6 address stands in brackets.
func ParsePublish(text string) (Publish, error) {
	bad := func(why string) (Publish, error) {
		return Publish{}, fault.New(fault.Invalid, "bad port to publish %q: %s", clip(text), why).WithHint(publishHint)
	}
	rest, protocol, found := strings.Cut(text, "/")
	if !found {
		protocol = ProtocolTCP
	}
	p := Publish{Address: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Protocol: protocol}
	at := strings.LastIndexByte(rest, ':')
	if at < 0 {
		return bad("it names one port only")
	}
	host, guest := rest[:at], rest[at+1:]
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		addr, err := netip.ParseAddr(strings.Trim(host[:at], "[]"))
		if err != nil {
			return bad("the address makes no sense")
		}
		p.Address, host = addr, host[at+1:]
	}
	for _, port := range []struct {
		text string
		to   *uint16
	}{{host, &p.HostPort}, {guest, &p.GuestPort}} {
		n, err := strconv.ParseUint(port.text, 10, 16)
		if err != nil {
			return bad("a port is a number up to 65535")
		}
		*port.to = uint16(n) // bounded by ParseUint
	}
	return p, p.validate()
}

// ParsePublished reads a list.
func ParsePublished(texts []string) ([]Publish, error) {
	var all []Publish
	for _, text := range texts {
		p, err := ParsePublish(text)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, validatePublished(all)
}

// Host returns the address and port of the host.
func (p Publish) Host() netip.AddrPort { return netip.AddrPortFrom(p.Address, p.HostPort) }

// String writes it the way ParsePublish reads it.
func (p Publish) String() string {
	text := p.Host().String() + ":" + strconv.Itoa(int(p.GuestPort))
	if p.Protocol != ProtocolTCP {
		text += "/" + p.Protocol
	}
	return text
}

func (p Publish) validate() error {
	why := ""
	switch {
	case p.Protocol != ProtocolTCP && p.Protocol != ProtocolUDP:
		why = "the protocol is tcp or udp"
	case !p.Address.IsValid() || p.Address.Zone() != "" || p.Address.IsMulticast():
		why = "no such address can be listened on"
	case p.GuestPort == 0:
		why = "the guest has no port 0"
	default:
		return nil
	}
	return fault.New(fault.Invalid, "bad port to publish %q: %s", p, why).WithHint(publishHint)
}

func validatePublished(all []Publish) error {
	if len(all) > MaxPublish {
		return fault.New(fault.Invalid, "%d ports to publish; %d is the most", len(all), MaxPublish)
	}
	for i, p := range all {
		if err := p.validate(); err != nil {
			return err
		}
		same := func(q Publish) bool { return p.HostPort != 0 && q.Host() == p.Host() && q.Protocol == p.Protocol }
		if slices.ContainsFunc(all[:i], same) {
			return fault.New(fault.Invalid, "the port %s/%s is to be published twice", p.Host(), p.Protocol)
		}
	}
	return nil
}
