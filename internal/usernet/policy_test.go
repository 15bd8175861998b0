package usernet

import (
	"net"
	"net/netip"
	"testing"
)

// hostOwn stands for the addresses of the host in these tests: one private, one public.
func hostOwn(addr netip.Addr) bool {
	switch addr.String() {
	case "192.168.1.5", "198.51.100.7", "2001:db8::7":
		return true
	}
	return addr.IsLoopback()
}

func TestPolicyDefault(t *testing.T) {
	t.Parallel()
	tests := []struct{ addr, reason string }{
		// Public, and documentation and benchmarking ranges, which some networks use as public.
		{"1.1.1.1", ""},
		{"8.8.8.8", ""},
		{"203.0.113.10", ""},
		{"192.0.2.1", ""},
		{"198.51.100.1", ""},
		{"198.18.0.1", ""},
		{"9.255.255.255", ""},
		{"11.0.0.0", ""},
		{"172.15.255.255", ""},
		{"172.32.0.0", ""},
		{"192.167.255.255", ""},
		{"192.169.0.0", ""},
		{"100.63.255.255", ""},
		{"100.128.0.0", ""},
		{"169.253.255.255", ""},
		{"169.255.0.0", ""},
		{"126.255.255.255", ""},
		{"128.0.0.0", ""},
		{"223.255.255.255", ""},
		{"1.0.0.0", ""},
		{"2606:4700:4700::1111", ""},
		{"2001:db8::1", ""},

		{"0.0.0.0", "this host"},
		{"0.255.255.255", "this host"},
		{"127.0.0.1", "loopback"},
		{"127.255.255.255", "loopback"},
		{"10.0.0.0", "private network"},
		{"10.255.255.255", "private network"},
		{"172.16.0.0", "private network"},
		{"172.31.255.255", "private network"},
		{"192.168.0.0", "private network"},
		{"192.168.255.255", "private network"},
		{"100.64.0.0", "carrier-grade NAT"},
		{"100.127.255.255", "carrier-grade NAT"},
		{"169.254.0.0", "link-local"},
		{"169.254.255.255", "link-local"},
		{"169.254.169.254", "cloud metadata"},
		{"169.254.170.2", "cloud metadata"},
		{"100.100.100.200", "cloud metadata"},
		{"168.63.129.16", "cloud metadata"},
		{"fd00:ec2::254", "cloud metadata"},
		{"192.0.0.192", "protocol assignments"},
		{"224.0.0.1", "multicast"},
		{"239.255.255.255", "multicast"},
		{"240.0.0.1", "reserved"},
		{"255.255.255.255", "broadcast"},
		{"::", "this host"},
		{"::1", "loopback"},
		{"fc00::1", "private network"},
		{"fdff::1", "private network"},
		{"fe80::1", "link-local"},
		{"fe80::1%eth0", "link-local"},
		{"febf::1", "link-local"},
		{"fec0::1", "private network"},
		{"ff02::1", "multicast"},

		// Forms that carry an IPv4 address.
		{"::ffff:127.0.0.1", "loopback"},
		{"::ffff:10.1.2.3", "private network"},
		{"::ffff:169.254.169.254", "cloud metadata"},
		{"::ffff:8.8.8.8", ""},
		{"::127.0.0.1", "loopback"},
		{"::10.0.0.1", "private network"},
		{"64:ff9b::7f00:1", "loopback"},
		{"64:ff9b::a9fe:a9fe", "cloud metadata"},
		{"64:ff9b::c0a8:1", "private network"},
		{"64:ff9b::808:808", ""},
		{"64:ff9b:1::808:808", "local NAT64"},
		{"2002:7f00:1::", "loopback"},
		{"2002:a9fe:a9fe::1", "cloud metadata"},
		{"2002:a00:1::1", "private network"},
		{"2002:808:808::1", ""},
		{"2001:0:808:808::80ff:fffe", "loopback"}, // Teredo: the client's address has its bits inverted
		{"2001:0:808:808::f7f7:f7f7", ""},

		// The host itself, at whatever address.
		{"198.51.100.7", "the host itself"},
		{"2001:db8::7", "the host itself"},
		{"64:ff9b::c633:6407", "the host itself"},
		{"::ffff:198.51.100.7", "the host itself"},
	}
	for _, tt := range tests {
		got := Policy{}.Check(netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 80), hostOwn)
		if got.Reason != tt.reason || got.Allowed != (tt.reason == "") {
			t.Errorf("%s: got %+v, want %q", tt.addr, got, tt.reason)
		}
	}
	if got := (Policy{}).Check(netip.AddrPort{}, hostOwn); got.Allowed {
		t.Error("no address at all is allowed")
	}
}

func TestPolicyGrants(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		mode    Mode
		allow   string
		addr    string
		allowed bool
	}{
		{"everything does not open private networks", Open, "0.0.0.0/0", "10.1.2.3", false},
		{"everything does not open loopback", Open, "0.0.0.0/0", "127.0.0.1", false},
		{"everything does not open metadata", Open, "0.0.0.0/0", "169.254.169.254", false},
		{"a half does not either", Open, "0.0.0.0/1", "10.1.2.3", false},
		{"a private network opens itself", Open, "10.0.0.0/8", "10.1.2.3", true},
		{"a part opens itself", Open, "10.1.0.0/16", "10.1.2.3", true},
		{"a part opens nothing else", Open, "10.1.0.0/16", "10.2.2.3", false},
		{"mapped grant", Open, "::ffff:10.1.0.0/112", "10.1.2.3", true},
		{"mapped address", Open, "10.1.0.0/16", "::ffff:10.1.2.3", true},
		{"link-local does not open metadata", Open, "169.254.0.0/16", "169.254.169.254", false},
		{"link-local opens link-local", Open, "169.254.0.0/16", "169.254.1.1", true},
		{"metadata opens metadata", Open, "169.254.169.254/32", "169.254.169.254", true},
		{"a LAN does not open the host in it", Open, "192.168.0.0/16", "192.168.1.5", false},
		{"a LAN opens the LAN", Open, "192.168.0.0/16", "192.168.1.6", true},
		{"the host's own address opens it", Open, "192.168.1.5/32", "192.168.1.5", true},
		{"the host's public network does not open it", Open, "198.51.100.0/24", "198.51.100.7", false},
		{"the host's public address opens it", Open, "198.51.100.7/32", "198.51.100.7", true},
		{"loopback opens loopback", Open, "127.0.0.0/8", "127.0.0.1", true},
		{"part of loopback", Open, "127.0.0.0/24", "127.0.1.1", false},
		{"unique local", Open, "fd00:1::/32", "fd00:1::5", true},

		{"closed", Closed, "", "8.8.8.8", false},
		{"closed but granted", Closed, "8.8.8.0/24", "8.8.8.8", true},
		{"closed and not granted", Closed, "8.8.8.0/24", "8.8.4.4", false},
		{"closed but for everything public", Closed, "0.0.0.0/0", "8.8.8.8", true},
		{"closed but for everything public: private", Closed, "0.0.0.0/0", "10.1.2.3", false},
		{"closed but for a private network", Closed, "10.1.0.0/16", "10.1.2.3", true},
		{"an unknown mode is closed", Mode("?"), "8.8.8.0/24", "8.8.8.8", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := Policy{Mode: tt.mode}
			if tt.allow != "" {
				p.Allow = []netip.Prefix{netip.MustParsePrefix(tt.allow)}
			}
			if got := p.Check(netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 80), hostOwn); got.Allowed != tt.allowed {
				t.Errorf("%s with a grant of %s: got %+v", tt.addr, tt.allow, got)
			}
		})
	}
}

// The first range that contains an address decides, so that a narrower one must not come after a wider one.
func TestProtectedRangesOrder(t *testing.T) {
	t.Parallel()
	for i, narrow := range protectedRanges {
		for _, wide := range protectedRanges[:i] {
			if wide.prefix.Bits() < narrow.prefix.Bits() && wide.prefix.Overlaps(narrow.prefix) {
				t.Errorf("%s comes after %s, which contains it", narrow.prefix, wide.prefix)
			}
		}
	}
}

func TestOwnAddrs(t *testing.T) {
	t.Parallel()
	cidr := func(s string) net.Addr {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		return &net.IPNet{IP: ip, Mask: n.Mask}
	}
	own := ownAddrs([]net.Addr{cidr("198.51.100.7/24"), cidr("203.0.113.9/31"), cidr("2001:db8::7/64")})
	for addr, want := range map[string]bool{
		"198.51.100.7": true, "198.51.100.255": true, "198.51.100.8": false,
		"203.0.113.9": true, "203.0.113.8": false, "2001:db8::7": true, "2001:db8::8": false,
	} {
		if _, got := own[netip.MustParseAddr(addr)]; got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	var h hostAddrs
	if !h.contains(netip.MustParseAddr("127.0.0.1")) {
		t.Error("127.0.0.1 is not the host's")
	}
	if h.contains(netip.MustParseAddr("203.0.113.77")) {
		t.Error("203.0.113.77 is the host's")
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1}, []byte{0, 0, 0, 0}, 0)
	f.Add(netip.MustParseAddr("64:ff9b::7f00:1").AsSlice(), netip.MustParseAddr("64:ff9b::").AsSlice(), 96)
	f.Fuzz(func(t *testing.T, addr, grant []byte, bits int) {
		a, ok := netip.AddrFromSlice(addr)
		if !ok {
			return
		}
		p := Policy{}
		if g, ok := netip.AddrFromSlice(grant); ok {
			p.Allow = []netip.Prefix{netip.PrefixFrom(g, bits)}
		}
		v := p.Check(netip.AddrPortFrom(a, 80), hostOwn)
		if v.Allowed != (v.Reason == "") {
			t.Errorf("%s: %+v", a, v)
		}
		if len(p.Allow) == 0 && v.Allowed && (a.Unmap().IsPrivate() || a.Unmap().IsLoopback() || a.Unmap().IsLinkLocalUnicast()) {
			t.Errorf("%s is allowed", a)
		}
	})
}
