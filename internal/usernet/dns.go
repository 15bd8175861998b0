package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// Domain holds the names of the VM's own network. They never leave it.
	Domain = "banger.internal."
	// localTTL is the time in seconds that the guest may keep an answer about Domain.
	localTTL = 60

	maxQueries   = 64               // under way at a time
	queryTimeout = 8 * time.Second  // for all resolvers together
	tryTimeout   = 2 * time.Second  // for one of them
	dnsIdle      = 10 * time.Second // between two queries of a TCP connection
	maxUDPAnswer = 4096             // bytes, whatever the guest says it can take
	maxQuery     = 4096             // bytes
	ednsUpstream = 1232             // bytes of UDP payload that we ask for: no fragments (dnsflagday.net/2020)
)

// resolver answers the guest's DNS queries: names of the VM's network itself, others by asking the host's resolvers.
// The host's own hosts file is not consulted: it is not for guests.
type resolver struct {
	gateway  netip.Addr
	public   bool // whether names outside of Domain are resolved
	servers  func() []netip.AddrPort
	exchange func(ctx context.Context, network string, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error)
	slots    chan struct{}
	stats    *counters
}

func newResolver(cfg *Config, stats *counters) *resolver {
	servers := func() []netip.AddrPort { return cfg.Resolvers }
	if len(cfg.Resolvers) == 0 {
		servers = (&resolvConf{path: "/etc/resolv.conf"}).servers
	}
	return &resolver{
		gateway: cfg.Gateway, public: cfg.Policy.Resolves(), servers: servers, exchange: exchange,
		slots: make(chan struct{}, maxQueries), stats: stats,
	}
}

// begin takes a slot for a query; it is false if there is none. finish gives it back.
func (r *resolver) begin() bool {
	select {
	case r.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (r *resolver) finish() { <-r.slots }

// serveTCP answers the queries of one connection, one after the other, until it is idle or the context ends.
func (r *resolver) serveTCP(ctx context.Context, conn net.Conn) {
	for ctx.Err() == nil {
		_ = conn.SetDeadline(time.Now().Add(dnsIdle))
		var head [2]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		size := binary.BigEndian.Uint16(head[:])
		if size > maxQuery {
			return
		}
		query := make([]byte, size)
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		if !r.begin() {
			return
		}
		answer := r.answer(ctx, query, true)
		r.finish()
		if answer == nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(dnsIdle))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer returns the answer to a query, or nil if it deserves none.
func (r *resolver) answer(ctx context.Context, query []byte, tcp bool) []byte {
	var q dns.Msg
	if len(query) < 12 || len(query) > maxQuery || query[2]&0x80 != 0 { // no header, or not a query
		r.stats.malformed.Add(1)
		return nil
	}
	reply := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		r.stats.malformed.Add(1)
		reply.Id = binary.BigEndian.Uint16(query)
		reply.Response = true
		reply.Rcode = dns.RcodeFormatError
	} else {
		reply = r.resolve(ctx, &q)
	}
	r.stats.queries.Add(1)
	if reply.Rcode == dns.RcodeServerFailure {
		r.stats.failures.Add(1)
	}
	size := dns.MaxMsgSize
	if !tcp {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDPAnswer)
		}
	}
	reply.Compress = true
	reply.Truncate(size)
	wire, err := reply.Pack()
	if err != nil || len(wire) > size {
		return nil
	}
	return wire
}

// resolve returns the answer to a query.
func (r *resolver) resolve(ctx context.Context, q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(q)
	reply.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		reply.SetEdns0(maxUDPAnswer, opt.Do())
		if opt.Version() != 0 {
			reply.Rcode = dns.RcodeBadVers
			return reply
		}
	}
	if q.Opcode != dns.OpcodeQuery {
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	}
	if len(q.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		return reply
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	switch {
	case question.Qclass != dns.ClassINET, question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		reply.Rcode = dns.RcodeRefused
	case dns.IsSubDomain(Domain, name):
		r.local(reply, question, name)
	case !r.public:
		reply.Rcode = dns.RcodeRefused
	case question.Qtype == dns.TypeAAAA:
		// The network carries no IPv6: say "no such address" at once, rather than have the guest try one in vain.
	default:
		r.forward(ctx, q, reply)
	}
	return reply
}

// local answers for Domain.
func (r *resolver) local(reply *dns.Msg, question dns.Question, name string) {
	reply.Authoritative = true
	switch name {
	case "gateway." + Domain, "host." + Domain:
		if question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY {
			reply.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: localTTL},
				A:   r.gateway.AsSlice(),
			}}
		}
	case Domain:
	default:
		reply.Rcode = dns.RcodeNameError
	}
}

// forward asks the host's resolvers, each in turn, twice, and takes the first useful answer.
func (r *resolver) forward(ctx context.Context, q, reply *dns.Msg) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	up := new(dns.Msg)
	up.Question = q.Question
	up.RecursionDesired = q.RecursionDesired
	up.CheckingDisabled = q.CheckingDisabled
	up.AuthenticatedData = q.AuthenticatedData
	opt := q.IsEdns0()
	up.SetEdns0(ednsUpstream, opt != nil && opt.Do())

	reply.Rcode = dns.RcodeServerFailure
	servers := r.servers()
	for range 2 {
		for _, server := range servers {
			answer, err := r.ask(ctx, server, up)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				continue
			}
			adopt(reply, answer)
			if answer.Rcode == dns.RcodeSuccess || answer.Rcode == dns.RcodeNameError {
				return
			}
		}
	}
}

// ask asks one resolver, by UDP and, if the answer does not fit, by TCP.
func (r *resolver) ask(ctx context.Context, server netip.AddrPort, up *dns.Msg) (*dns.Msg, error) {
	up.Id = dns.Id()
	answer, err := r.try(ctx, "udp", server, up)
	if err == nil && answer.Truncated {
		if whole, err := r.try(ctx, "tcp", server, up); err == nil {
			return whole, nil
		}
	}
	return answer, err
}

func (r *resolver) try(ctx context.Context, network string, server netip.AddrPort, up *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	return r.exchange(ctx, network, server, up)
}

// adopt copies an answer into the reply, but for what is between us and the resolver.
func adopt(reply, answer *dns.Msg) {
	reply.Rcode = answer.Rcode & 0xf // without EDNS, which the guest may not speak, there are no more bits
	reply.Truncated = answer.Truncated
	reply.Authoritative = answer.Authoritative
	reply.AuthenticatedData = answer.AuthenticatedData
	reply.Answer = answer.Answer
	reply.Ns = answer.Ns
	opt := reply.IsEdns0()
	reply.Extra = nil
	for _, rr := range answer.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG:
		default:
			reply.Extra = append(reply.Extra, rr)
		}
	}
	if opt != nil {
		reply.Extra = append(reply.Extra, opt)
	}
}

var errForeignAnswer = errors.New("the answer is to another question")

// exchange sends a query and waits for its answer, or the end of the context.
func exchange(ctx context.Context, network string, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer raw.Close() //nolint:errcheck // read to the end
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	conn := &dns.Conn{Conn: raw, UDPSize: maxUDPAnswer}
	if err := conn.WriteMsg(query); err != nil {
		return nil, err
	}
	for {
		answer, err := conn.ReadMsg()
		switch {
		case err != nil && network == "udp" && answer != nil: // broken, perhaps forged: wait for a better one
			continue
		case err != nil:
			return nil, err
		case answers(answer, query):
			return answer, nil
		case network != "udp":
			return nil, errForeignAnswer
		}
	}
}

// answers reports whether a message is the answer to a query.
func answers(answer, query *dns.Msg) bool {
	if !answer.Response || answer.Id != query.Id || len(answer.Question) != 1 {
		return false
	}
	a, q := answer.Question[0], query.Question[0]
	return a.Qtype == q.Qtype && a.Qclass == q.Qclass && strings.EqualFold(a.Name, q.Name)
}
