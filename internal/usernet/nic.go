package usernet

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// nic is a link as the stack sees it: a [stack.LinkEndpoint]. Most of that interface has nothing to do here.
type nic struct{ link *link }

// WritePackets implements [stack.LinkWriter]: it queues what the stack sends.
func (n nic) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		if !n.link.send(pkt.NetworkProtocolNumber, pkt.AsSlices()...) {
			return sent, &tcpip.ErrNoBufferSpace{}
		}
		sent++
	}
	return sent, nil
}

// Attach implements [stack.NetworkLinkEndpoint].
func (n nic) Attach(d stack.NetworkDispatcher) {
	n.link.mu.Lock()
	defer n.link.mu.Unlock()
	n.link.sink = d
}

// IsAttached implements [stack.NetworkLinkEndpoint].
func (n nic) IsAttached() bool {
	n.link.mu.Lock()
	defer n.link.mu.Unlock()
	return n.link.sink != nil
}

// LinkAddress implements [stack.NetworkLinkEndpoint].
func (n nic) LinkAddress() tcpip.LinkAddress { return n.link.mac }

// MTU implements [stack.NetworkLinkEndpoint].
func (n nic) MTU() uint32 { return uint32(n.link.mtu) }

// Capabilities implements [stack.NetworkLinkEndpoint]. There is no neighbour resolution, and checksums of what came
// over a local socket are not verified again.
func (nic) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityRXChecksumOffload }

// SetMTU implements [stack.NetworkLinkEndpoint].
func (nic) SetMTU(uint32) {}

// MaxHeaderLength implements [stack.NetworkLinkEndpoint]; send adds the header itself.
func (nic) MaxHeaderLength() uint16 { return 0 }

// SetLinkAddress implements [stack.NetworkLinkEndpoint].
func (nic) SetLinkAddress(tcpip.LinkAddress) {}

// Wait implements [stack.NetworkLinkEndpoint].
func (nic) Wait() {}

// ARPHardwareType implements [stack.NetworkLinkEndpoint].
func (nic) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements [stack.NetworkLinkEndpoint].
func (nic) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements [stack.NetworkLinkEndpoint].
func (nic) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements [stack.NetworkLinkEndpoint].
func (nic) Close() {}

// SetOnCloseAction implements [stack.NetworkLinkEndpoint].
func (nic) SetOnCloseAction(func()) {}

// GSOMaxSize implements [stack.GSOEndpoint]: TCP makes segments of this size, in bytes, and the stack splits them late.
func (nic) GSOMaxSize() uint32 { return 32 << 10 }

// SupportedGSO implements [stack.GSOEndpoint].
func (nic) SupportedGSO() stack.SupportedGSO { return stack.GVisorGSOSupported }
