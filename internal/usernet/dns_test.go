package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a DNS server on the host's loopback interface.
func upstream(t testing.TB, handle func(q *dns.Msg, tcp bool) *dns.Msg) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", pc.LocalAddr().String())
	if err != nil {
		t.Skipf("the port is taken: %v", err)
	}
	for _, srv := range []*dns.Server{{PacketConn: pc}, {Listener: l}} {
		tcp := srv.Listener != nil
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			if m := handle(q, tcp); m != nil {
				_ = w.WriteMsg(m)
			}
		})
		go func() { _ = srv.ActivateAndServe() }()
	}
	t.Cleanup(func() {
		_ = pc.Close()
		_ = l.Close()
	})
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// zone answers like a small world: many.test does not fit into a datagram, none.test does not exist.
func zone(q *dns.Msg, tcp bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.Compress = true
	name := strings.ToLower(q.Question[0].Name)
	switch {
	case name == "one.test." && q.Question[0].Qtype == dns.TypeA:
		m.Answer = []dns.RR{rr("one.test. 5 IN A 203.0.113.9")}
	case name == "one.test." && q.Question[0].Qtype == dns.TypeTXT:
		m.Answer = []dns.RR{rr(`one.test. 5 IN TXT "text"`)}
	case name == "many.test.":
		for i := range 200 {
			m.Answer = append(m.Answer, rr(fmt.Sprintf("many.test. 5 IN A 203.0.113.%d", i)))
		}
		if !tcp {
			m.Truncate(dns.MinMsgSize)
		}
	case name == "none.test.":
		m.Rcode = dns.RcodeNameError
	case name == "broken.test.":
		m.Rcode = dns.RcodeServerFailure
	case name == "silent.test.":
		return nil
	}
	return m
}

func rr(s string) dns.RR {
	r, err := dns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

func query(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

// ask sends a query from the guest to the gateway.
func (h *harness) ask(t testing.TB, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	var c net.Conn
	if network == "tcp" {
		c = h.mustDialTCP(t, gatewayAddr+":53")
	} else {
		c = h.dialUDP(t, gatewayAddr+":53")
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	conn := &dns.Conn{Conn: c, UDPSize: 65535}
	if err := conn.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	m, err := conn.ReadMsg()
	if err != nil {
		t.Fatalf("%s %v: %v", network, q.Question, err)
	}
	return m
}

func TestDNS(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Resolvers: []netip.AddrPort{upstream(t, zone)}}) // at loopback, which the policy denies the guest
	for _, network := range []string{"udp", "tcp"} {
		tests := []struct {
			name    string
			qtype   uint16
			rcode   int
			answers []string // the last field of each record
		}{
			{"one.test.", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.9"}},
			{"One.Test.", dns.TypeA, dns.RcodeSuccess, []string{"203.0.113.9"}},
			{"one.test.", dns.TypeTXT, dns.RcodeSuccess, []string{`"text"`}},
			{"one.test.", dns.TypeAAAA, dns.RcodeSuccess, nil},
			{"none.test.", dns.TypeA, dns.RcodeNameError, nil},
			{"broken.test.", dns.TypeA, dns.RcodeServerFailure, nil},
			{"gateway.banger.internal.", dns.TypeA, dns.RcodeSuccess, []string{gatewayAddr}},
			{"HOST.banger.internal.", dns.TypeA, dns.RcodeSuccess, []string{gatewayAddr}},
			{"host.banger.internal.", dns.TypeAAAA, dns.RcodeSuccess, nil},
			{"other.banger.internal.", dns.TypeA, dns.RcodeNameError, nil},
			{"banger.internal.", dns.TypeA, dns.RcodeSuccess, nil},
			{"one.test.", dns.TypeAXFR, dns.RcodeRefused, nil},
		}
		for _, tt := range tests {
			m := h.ask(t, network, query(tt.name, tt.qtype))
			var got []string
			for _, a := range m.Answer {
				f := strings.Fields(a.String())
				got = append(got, f[len(f)-1])
			}
			if m.Rcode != tt.rcode || !slices.Equal(got, tt.answers) {
				t.Errorf("%s %s %s: %s %v", network, tt.name, dns.TypeToString[tt.qtype], dns.RcodeToString[m.Rcode], got)
			}
		}
	}
	if s := h.net.Stats(); s.Denied != 0 || s.Queries != 24 || s.QueryFailures != 2 {
		t.Errorf("stats: %+v", s)
	}
}

func TestDNSTruncation(t *testing.T) {
	t.Parallel()
	h := start(t, Config{Resolvers: []netip.AddrPort{upstream(t, zone)}})
	plain := h.ask(t, "udp", query("many.test.", dns.TypeA))
	plain.Compress = true
	if !plain.Truncated || plain.Len() > dns.MinMsgSize {
		t.Errorf("plain UDP: truncated=%v, %d bytes", plain.Truncated, plain.Len())
	}
	edns := query("many.test.", dns.TypeA)
	edns.SetEdns0(4096, false)
	if m := h.ask(t, "udp", edns); m.Truncated || len(m.Answer) != 200 || m.IsEdns0() == nil {
		t.Errorf("UDP with EDNS: truncated=%v, %d records", m.Truncated, len(m.Answer))
	}
	if m := h.ask(t, "tcp", query("many.test.", dns.TypeA)); m.Truncated || len(m.Answer) != 200 {
		t.Errorf("TCP: truncated=%v, %d records", m.Truncated, len(m.Answer))
	}
}

// A resolver that is down, and one that does not answer, cost time but no answer while another one works.
func TestDNSFallback(t *testing.T) {
	t.Parallel()
	down := netip.MustParseAddrPort(closedPort(t, "udp4"))
	h := start(t, Config{Resolvers: []netip.AddrPort{down, upstream(t, zone)}})
	if m := h.ask(t, "udp", query("one.test.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("with one resolver down: %v", m)
	}
	h = start(t, Config{Resolvers: []netip.AddrPort{down}})
	if m := h.ask(t, "udp", query("one.test.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("with all resolvers down: %v", m)
	}
}

// An answer with another id or question does not count: the right one is waited for.
func TestDNSForgedAnswers(t *testing.T) {
	t.Parallel()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close() //nolint:errcheck // a test's end
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			var q dns.Msg
			if q.Unpack(b[:n]) != nil {
				continue
			}
			forge := func(edit func(m *dns.Msg)) {
				m := zone(&q, false)
				edit(m)
				wire, _ := m.Pack()
				_, _ = pc.WriteTo(wire, from)
			}
			evil := rr("one.test. 5 IN A 6.6.6.6")
			forge(func(m *dns.Msg) { m.Id++; m.Answer = []dns.RR{evil} })
			forge(func(m *dns.Msg) { m.Question[0].Name = "two.test."; m.Answer = []dns.RR{evil} })
			forge(func(m *dns.Msg) { m.Response = false; m.Answer = []dns.RR{evil} })
			forge(func(*dns.Msg) {})
		}
	}()
	h := start(t, Config{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}})
	m := h.ask(t, "udp", query("one.test.", dns.TypeA))
	if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "203.0.113.9") {
		t.Errorf("got %v", m)
	}
}

func TestDNSClosedPolicy(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	server := upstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		asked.Add(1)
		return zone(q, tcp)
	})
	h := start(t, Config{Resolvers: []netip.AddrPort{server}, Policy: Policy{Mode: Closed}})
	if m := h.ask(t, "udp", query("one.test.", dns.TypeA)); m.Rcode != dns.RcodeRefused || asked.Load() != 0 {
		t.Errorf("closed: %v; asked %d times", m, asked.Load())
	}
	if m := h.ask(t, "udp", query("gateway.banger.internal.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("closed, own name: %v", m)
	}
	h = start(t, Config{Resolvers: []netip.AddrPort{server}, Policy: Policy{Mode: Closed, ResolveClosed: true}})
	if m := h.ask(t, "udp", query("one.test.", dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("closed, with names: %v", m)
	}
}

// testResolver is a resolver without a network around it.
func testResolver(ask func(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error)) *resolver {
	cfg := Config{Gateway: netip.MustParseAddr(gatewayAddr), Resolvers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}}
	r := newResolver(&cfg, new(counters))
	r.exchange = ask
	return r
}

func TestDNSAnswersNothing(t *testing.T) {
	t.Parallel()
	r := testResolver(func(context.Context, string, netip.AddrPort, *dns.Msg) (*dns.Msg, error) {
		return nil, errors.New("no")
	})
	response := query("one.test.", dns.TypeA)
	response.Response = true
	wire, _ := response.Pack()
	for name, b := range map[string][]byte{
		"empty": {}, "short": make([]byte, 11), "a response": wire, "too long": make([]byte, maxQuery+1),
	} {
		if got := r.answer(t.Context(), b, false); got != nil {
			t.Errorf("%s: answered % x", name, got)
		}
	}
	for name, tt := range map[string]struct {
		edit  func(m *dns.Msg)
		rcode int
	}{
		"two questions": {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"no question":   {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"update":        {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"CHAOS":         {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"EDNS 1":        {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"no resolver":   {func(*dns.Msg) {}, dns.RcodeServerFailure},
	} {
		q := query("one.test.", dns.TypeA)
		tt.edit(q)
		b, _ := q.Pack()
		var m dns.Msg
		if err := m.Unpack(r.answer(t.Context(), b, false)); err != nil || m.Rcode != tt.rcode || m.Id != q.Id || !m.Response {
			t.Errorf("%s: %v, %v", name, &m, err)
		}
	}
	garbage := append(make([]byte, 12), 0xff, 0xff, 0xff)
	garbage[5] = 1 // one question, which is not there
	var m dns.Msg
	if err := m.Unpack(r.answer(t.Context(), garbage, false)); err != nil || m.Rcode != dns.RcodeFormatError {
		t.Errorf("garbage: %v, %v", &m, err)
	}
}

func TestResolvConf(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	c := &resolvConf{path: path}
	check := func(want ...string) {
		t.Helper()
		var got []string
		for _, s := range c.servers() {
			got = append(got, s.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check("127.0.0.1:53") // no file
	write("# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver  fe80::1%eth0 # inline\noptions edns0\n")
	check("192.0.2.1:53", "[fe80::1%eth0]:53")
	write("nameserver 192.0.2.2\nnameserver nonsense\nnameserver\nnameserver 192.0.2.3\nnameserver 192.0.2.4\nnameserver 192.0.2.5")
	check("192.0.2.2:53", "192.0.2.3:53", "192.0.2.4:53")
	write("")
	check("127.0.0.1:53")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("127.0.0.1:53")
}

// FuzzDNS feeds queries to the resolver, with an upstream that answers with them.
func FuzzDNS(f *testing.F) {
	for _, q := range []*dns.Msg{query("one.test.", dns.TypeA), query("gateway.banger.internal.", dns.TypeANY), query("x.", dns.TypeAXFR)} {
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		q.SetEdns0(1232, true)
		if b, err = q.Pack(); err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	var current *dns.Msg
	r := testResolver(func(_ context.Context, _ string, _ netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
		if current == nil {
			return nil, errors.New("no answer")
		}
		m := current.Copy()
		m.Id, m.Response, m.Question = q.Id, true, q.Question
		return m, nil
	})
	f.Fuzz(func(t *testing.T, b []byte, tcp bool) {
		current = new(dns.Msg)
		if current.Unpack(b) != nil {
			current = nil
		}
		got := r.answer(t.Context(), b, tcp)
		if got == nil {
			return
		}
		var m dns.Msg
		if err := m.Unpack(got); err != nil {
			t.Errorf("the answer cannot be read: %v", err)
		}
		if !m.Response || got[0] != b[0] || got[1] != b[1] {
			t.Error("not an answer to the query")
		}
		if !tcp && len(got) > maxUDPAnswer {
			t.Errorf("%d bytes over UDP", len(got))
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list := parseResolvConf(b)
		if list == nil || len(list) > maxNameservers {
			t.Errorf("%v", list)
		}
	})
}
