package guestagent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guestproto"
)

// nicName is the name the kernel gives the first network device.
const nicName = "eth0"

// configureNetwork brings the loopback and, if there is an address for it, the network device up, with address, route and
// MTU. It does nothing that takes time: no DHCP, no wait for a carrier.
func configureNetwork(p guestproto.BootParams) error {
	s, err := openRoute()
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.linkUp(1, 0); err != nil { // the loopback is always number 1
		return fmt.Errorf("bring the loopback up: %w", err)
	}
	if !p.Addr.IsValid() {
		return nil
	}
	index, err := nicIndex()
	if err != nil {
		return err
	}
	if err := s.addAddr(index, p.Addr); err != nil {
		return fmt.Errorf("set the address %s: %w", p.Addr, err)
	}
	if err := s.linkUp(index, p.MTU); err != nil {
		return fmt.Errorf("bring %s up: %w", nicName, err)
	}
	if p.Gateway.IsValid() {
		if err := s.addDefaultRoute(index, p.Gateway); err != nil {
			return fmt.Errorf("set the gateway %s: %w", p.Gateway, err)
		}
	}
	return nil
}

func nicIndex() (int, error) {
	deadline := time.Now().Add(deviceWait)
	for {
		nic, err := net.InterfaceByName(nicName)
		if err == nil {
			return nic.Index, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("find the network device %s: %w", nicName, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// routeSocket speaks rtnetlink(7), the little of it that is needed here.
type routeSocket struct {
	fd  int
	seq uint32
}

func openRoute() (*routeSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("open rtnetlink", err)
	}
	// The kernel answers within the send; this is for the case that it does not.
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("open rtnetlink", err)
	}
	return &routeSocket{fd: fd}, nil
}

func (s *routeSocket) close() { _ = unix.Close(s.fd) }

// linkUp sets a device up, and its MTU if that is not 0.
func (s *routeSocket) linkUp(index, mtu int) error {
	// struct ifinfomsg: family, pad, type, index, flags, change.
	b := make([]byte, 4, 64)
	b = binary.NativeEndian.AppendUint32(b, uint32(index)) // from the kernel
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP)
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP)
	if mtu != 0 {
		b = attribute(b, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu))) // checked when parsed
	}
	return s.request(unix.RTM_NEWLINK, 0, b)
}

func (s *routeSocket) addAddr(index int, p netip.Prefix) error {
	// struct ifaddrmsg: family, prefix length, flags, scope, index.
	b := []byte{family(p.Addr()), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index)) // from the kernel
	b = attribute(b, unix.IFA_LOCAL, p.Addr().AsSlice())
	b = attribute(b, unix.IFA_ADDRESS, p.Addr().AsSlice())
	return s.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
}

func (s *routeSocket) addDefaultRoute(index int, gateway netip.Addr) error {
	// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
	b := []byte{
		family(gateway), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST,
		0, 0, 0, 0,
	}
	b = attribute(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = attribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index))) // from the kernel
	return s.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// attribute appends a struct rtattr with its value, padded to four bytes.
func attribute(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value))) // a few bytes
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// request sends one message and waits for the kernel's verdict (netlink(7)).
func (s *routeSocket) request(typ, flags uint16, body []byte) error {
	s.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body))) // a few bytes
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send", err)
	}
	reply := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s.fd, reply, 0)
	if err != nil {
		return os.NewSyscallError("receive", err)
	}
	// struct nlmsghdr, then struct nlmsgerr, which begins with an errno, negated.
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return errors.New("unexpected answer of rtnetlink")
	}
	if code := int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); code != 0 { // it is signed
		return unix.Errno(-code)
	}
	return nil
}
