package usernet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"banger/internal/fault"
)

const (
	// readBuffer holds many frames of the usual size, or one of the largest.
	readBuffer = 128 << 10
	// maxFrame is the largest frame that QEMU sends (NET_BUFSIZE in its include/net/net.h). A longer one means that
	// the stream is out of step.
	maxFrame = 4096 + 65536
	// maxQueued bounds the bytes that wait for a guest that does not read. What does not fit is dropped, as on any
	// wire, and TCP sends it again. It is more than one connection's window.
	maxQueued = 2 << 20
	// keepBuffer is how large an idle output buffer may stay.
	keepBuffer = 64 << 10
)

// link is the wire between one guest and the stack: frames on a stream, the guest at the other end. It answers ARP and
// knows the guest's hardware address, so that the stack needs no neighbour table, and lets only packets in that this
// network can carry: plain IPv4 of TCP, UDP and ICMP echo from the guest's own address.
//
// Its lock guards the output and the addresses; it is never held over I/O.
type link struct {
	gateway, guest netip.Addr
	mac            tcpip.LinkAddress // the gateway's
	mtu            int
	stats          *counters
	onEcho         func(dst netip.Addr, ident uint16, packet []byte) // an ICMP echo request, with its IPv4 header

	wake chan struct{} // holds a token if out has something

	mu       sync.Mutex
	sink     stack.NetworkDispatcher
	guestMAC tcpip.LinkAddress
	out      []byte
	nextID   uint16
}

func newLink(cfg *Config, stats *counters) *link {
	l := &link{
		gateway: cfg.Gateway, guest: cfg.Guest.Addr(), mtu: cfg.MTU, stats: stats,
		mac:      tcpip.LinkAddress(cfg.MAC),
		guestMAC: header.EthernetBroadcastAddress,
		wake:     make(chan struct{}, 1),
	}
	if len(cfg.GuestMAC) != 0 {
		l.guestMAC = tcpip.LinkAddress(cfg.GuestMAC)
	}
	return l
}

// read takes frames off the stream and handles each, until the stream ends.
func (l *link) read(r io.Reader) error {
	in := bufio.NewReaderSize(r, readBuffer)
	for {
		head, err := in.Peek(frameLength)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) == 0 {
				return io.EOF
			}
			return noEOF(err)
		}
		size := int(binary.BigEndian.Uint32(head))
		if size > maxFrame {
			return fault.New(fault.Corrupt, "the VMM sent a frame of %d bytes (at most %d)", size, maxFrame)
		}
		frame, err := in.Peek(frameLength + size)
		if err != nil {
			return noEOF(err)
		}
		l.receive(frame[frameLength:])
		if _, err := in.Discard(frameLength + size); err != nil {
			return noEOF(err)
		}
	}
}

// noEOF is for the middle of a frame, where the end of the stream is not a clean one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// receive handles one frame of the guest. The bytes are the caller's again when it returns.
func (l *link) receive(frame []byte) {
	l.stats.framesIn.Add(1)
	l.stats.bytesIn.Add(uint64(len(frame)))
	if len(frame) < etherSize || len(frame) > etherSize+l.mtu {
		l.stats.malformed.Add(1)
		return
	}
	eth := header.Ethernet(frame)
	payload := frame[etherSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		l.learn(eth.SourceAddress())
		if reply, ok := arpReply(payload, l.gateway, l.mac); ok {
			l.send(header.ARPProtocolNumber, reply)
		}
	case header.IPv4ProtocolNumber:
		if packet, ok := l.admit(payload); ok {
			l.learn(eth.SourceAddress())
			l.deliver(packet)
		} else {
			l.stats.malformed.Add(1)
		}
	default: // IPv6 and others: not carried
	}
}

// admit checks a packet's header and returns the packet without the frame's padding.
func (l *link) admit(b []byte) ([]byte, bool) {
	if len(b) < ipv4Size {
		return nil, false
	}
	ip := header.IPv4(b)
	total := int(ip.TotalLength())
	switch {
	case b[0] != 0x45: // version 4, no options: nobody needs them, and they cost code that strangers can reach
		return nil, false
	case total < ipv4Size || total > len(b):
		return nil, false
	case netip.AddrFrom4([4]byte(b[12:16])) != l.guest:
		return nil, false
	}
	dst := netip.AddrFrom4([4]byte(b[16:20]))
	if dst.IsMulticast() || dst.IsUnspecified() || dst == l.guest || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return nil, false
	}
	return b[:total], true
}

// deliver hands an admitted packet on: echo requests to onEcho, TCP and UDP to the stack.
func (l *link) deliver(packet []byte) {
	ip := header.IPv4(packet)
	switch ip.TransportProtocol() {
	case header.ICMPv4ProtocolNumber:
		msg := header.ICMPv4(packet[ipv4Size:])
		if len(msg) < icmpSize || ip.More() || ip.FragmentOffset() != 0 || msg.Type() != header.ICMPv4Echo {
			return
		}
		l.onEcho(netip.AddrFrom4([4]byte(packet[16:20])), msg.Ident(), packet)
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		l.mu.Lock()
		sink := l.sink
		l.mu.Unlock()
		if sink == nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		pkt.PktType = tcpip.PacketHost
		sink.DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
		pkt.DecRef()
	default:
	}
}

// learn notes where the guest is.
func (l *link) learn(mac tcpip.LinkAddress) {
	if mac[0]&1 != 0 { // a group address
		return
	}
	l.mu.Lock()
	if l.guestMAC != mac {
		l.guestMAC = mac
	}
	l.mu.Unlock()
}

// send queues one frame whose payload is the parts joined. It reports false if there was no room.
func (l *link) send(proto tcpip.NetworkProtocolNumber, parts ...[]byte) bool {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	l.mu.Lock()
	if len(l.out)+frameLength+etherSize+size > maxQueued {
		l.mu.Unlock()
		l.stats.queueDrops.Add(1)
		return false
	}
	l.out = putFrameHeader(l.out, l.guestMAC, l.mac, proto, size)
	for _, p := range parts {
		l.out = append(l.out, p...)
	}
	l.mu.Unlock()
	l.stats.framesOut.Add(1)
	l.stats.bytesOut.Add(uint64(etherSize + size))
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// sendIPv4 sends a packet to the guest, in fragments if need be. head is the transport header, a multiple of eight
// bytes long.
func (l *link) sendIPv4(proto tcpip.TransportProtocolNumber, src netip.Addr, head, payload []byte) {
	l.mu.Lock()
	id := l.nextID
	l.nextID++
	l.mu.Unlock()
	room := (l.mtu - ipv4Size) &^ 7 // fragments begin at multiples of eight bytes
	for offset, total := 0, len(head)+len(payload); ; {
		part := payload[:min(len(payload), room-len(head))]
		payload = payload[len(part):]
		var ip [ipv4Size]byte
		putIPv4(ip[:], proto, src, l.guest, id, len(head)+len(part), offset, len(payload) != 0)
		if !l.send(header.IPv4ProtocolNumber, ip[:], head, part) {
			return
		}
		offset += len(head) + len(part)
		head = nil
		if offset >= total {
			return
		}
	}
}

// sendUDP sends a datagram to the guest. One that is longer than IPv4 allows is dropped.
func (l *link) sendUDP(src, dst netip.AddrPort, payload []byte) {
	if len(payload) > header.UDPMaximumPacketSize-ipv4Size-udpSize {
		return
	}
	head := udpHeader(src, dst, payload)
	l.sendIPv4(header.UDPProtocolNumber, src.Addr(), head[:], payload)
}

// unreachable tells the guest that a packet of its own did not arrive.
func (l *link) unreachable(code header.ICMPv4Code, about quote) {
	l.sendIPv4(header.ICMPv4ProtocolNumber, l.gateway, nil, icmpError(code, about))
}

// write puts queued frames on the stream until the context ends or the stream fails. It writes all that is queued at
// once and queues meanwhile in a second buffer.
func (l *link) write(ctx context.Context, w io.Writer) error {
	var free []byte
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		}
		l.mu.Lock()
		batch := l.out
		l.out = free[:0]
		l.mu.Unlock()
		if _, err := w.Write(batch); err != nil {
			return err
		}
		free = batch
		if cap(free) > keepBuffer && len(batch) < keepBuffer/4 {
			free = nil // a burst is over
		}
	}
}
