package usernet

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	etherSize = header.EthernetMinimumSize
	ipv4Size  = header.IPv4MinimumSize
	udpSize   = header.UDPMinimumSize
	icmpSize  = header.ICMPv4MinimumSize

	// quotedSize is how much of a packet an ICMP error quotes: its header and eight bytes (RFC 792).
	quotedSize = ipv4Size + 8
)

// quote is the beginning of a guest's packet, kept for an ICMP error about it.
type quote [quotedSize]byte

// endpoint4 is one end of a flow over IPv4.
func endpoint4(addr tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(addr.As4()), port)
}

// putIPv4 writes a header without options into b. offset is the fragment's in bytes.
func putIPv4(b []byte, proto tcpip.TransportProtocolNumber, src, dst netip.Addr, id uint16, payload, offset int, more bool) {
	flags := uint8(0)
	if more {
		flags = header.IPv4FlagMoreFragments
	}
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength:    uint16(ipv4Size + payload),
		ID:             id,
		Flags:          flags,
		FragmentOffset: uint16(offset),
		TTL:            64,
		Protocol:       uint8(proto),
		SrcAddr:        tcpip.AddrFrom4(src.As4()),
		DstAddr:        tcpip.AddrFrom4(dst.As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
}

// udpHeader returns the header of a datagram with its checksum.
func udpHeader(src, dst netip.AddrPort, payload []byte) [udpSize]byte {
	var b [udpSize]byte
	h := header.UDP(b[:])
	size := uint16(udpSize + len(payload))
	h.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: size})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, tcpip.AddrFrom4(src.Addr().As4()), tcpip.AddrFrom4(dst.Addr().As4()), size)
	sum = ^h.CalculateChecksum(checksum.Checksum(payload, sum))
	if sum == 0 { // zero means "none" (RFC 768)
		sum = 0xffff
	}
	h.SetChecksum(sum)
	return b
}

// icmpError returns the ICMP message "destination unreachable" about a packet.
func icmpError(code header.ICMPv4Code, about quote) []byte {
	b := make([]byte, icmpSize+quotedSize)
	copy(b[icmpSize:], about[:])
	h := header.ICMPv4(b)
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(code)
	h.SetChecksum(^checksum.Checksum(b, 0))
	return b
}

// echoReply turns an echo request into the reply to it, in place, with the identifier given.
func echoReply(msg []byte, ident uint16) {
	h := header.ICMPv4(msg)
	h.SetType(header.ICMPv4EchoReply)
	h.SetCode(0)
	h.SetIdent(ident)
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(msg, 0))
}

// arpReply returns the answer to the ARP request in b (RFC 826), if it is one for the address that mac has.
func arpReply(b []byte, owner netip.Addr, mac tcpip.LinkAddress) ([]byte, bool) {
	req := header.ARP(b)
	if !req.IsValid() || req.Op() != header.ARPRequest || [4]byte(req.ProtocolAddressTarget()) != owner.As4() {
		return nil, false
	}
	reply := header.ARP(make([]byte, header.ARPSize))
	reply.SetIPv4OverEthernet()
	reply.SetOp(header.ARPReply)
	copy(reply.HardwareAddressSender(), mac)
	copy(reply.ProtocolAddressSender(), req.ProtocolAddressTarget())
	copy(reply.HardwareAddressTarget(), req.HardwareAddressSender())
	copy(reply.ProtocolAddressTarget(), req.ProtocolAddressSender())
	return reply, true
}

// frameLength is the size of the length in front of each frame on the wire.
const frameLength = 4

// putFrameHeader appends the length of a frame and its Ethernet header to b.
func putFrameHeader(b []byte, dst, src tcpip.LinkAddress, proto tcpip.NetworkProtocolNumber, payload int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(etherSize+payload))
	b = append(b, dst...)
	b = append(b, src...)
	return binary.BigEndian.AppendUint16(b, uint16(proto))
}
