package guestagent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/internal/guestproto"
)

// watchPause is how often the ports are looked at while the host watches them. The kernel tells nobody of a new listener
// (sock_diag(7) can destroy and dump sockets, and reports only their end), so somebody has to look, and here it is cheapest.
const watchPause = time.Second

// ports answers the request of the same name.
func ports(ctx context.Context, s *stream, spec guestproto.PortsSpec) error {
	table := portTable{fs: realProcfs(), owners: map[string]string{}}
	last, err := table.read()
	if err != nil {
		return err
	}
	if err := s.w.JSON(guestproto.FrameAnswer, guestproto.Ports{Ports: last}); err != nil || !spec.Watch {
		return err
	}
	ctx, cancel := s.abandoned(ctx)
	defer cancel()
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := table.read()
		if err != nil {
			return err
		}
		if slices.Equal(now, last) {
			continue
		}
		if err := s.w.JSON(guestproto.FrameAnswer, guestproto.Ports{Ports: now}); err != nil {
			return err
		}
		last = now
	}
}

// socket is a line of /proc/net/tcp and its kin.
type socket struct {
	addr  netip.AddrPort
	inode string
}

// portTable reads what the guest listens on and remembers whose sockets they are: to find that out, the descriptors of all
// processes are looked at.
type portTable struct {
	fs     procfs
	owners map[string]string // by inode; only of sockets that were there at the last reading
}

// read returns the ports, sorted, at most guestproto.MaxPorts.
func (t *portTable) read() ([]guestproto.Port, error) {
	type listener struct {
		socket
		protocol string
	}
	var all []listener
	for _, protocol := range []string{guestproto.ProtocolTCP, guestproto.ProtocolUDP} {
		for _, suffix := range []string{"", "6"} {
			text, err := t.fs.read("net/" + protocol + suffix)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return nil, fmt.Errorf("read sockets: %w", err)
			}
			for _, s := range parseSockets(string(text), protocol) {
				all = append(all, listener{s, protocol})
			}
		}
	}
	unknown, owners := map[string]bool{}, map[string]string{}
	for _, l := range all {
		if name, ok := t.owners[l.inode]; ok {
			owners[l.inode] = name
		} else {
			unknown[l.inode], owners[l.inode] = true, ""
		}
	}
	if len(unknown) > 0 {
		t.fs.findOwners(unknown, owners)
	}
	t.owners = owners
	found := make([]guestproto.Port, 0, len(all))
	for _, l := range all {
		found = append(found, guestproto.Port{
			Protocol: l.protocol, Address: l.addr.Addr().String(), Port: l.addr.Port(), Process: owners[l.inode],
		})
	}
	slices.SortStableFunc(found, guestproto.ComparePorts)
	// Several sockets may share a port (SO_REUSEPORT).
	found = slices.CompactFunc(found, func(a, b guestproto.Port) bool { return guestproto.ComparePorts(a, b) == 0 })
	return found[:min(len(found), guestproto.MaxPorts)], nil
}

// States of sockets in /proc/net, proc_pid_net(5): those of TCP in the kernel, which UDP borrows.
const (
	stateClose  = "07" // of UDP: not connected, so that it takes datagrams from anyone
	stateListen = "0A"
)

// parseSockets returns the sockets that take what comes: of TCP those that listen, of UDP those that are bound and not
// connected. Lines that make no sense are left out.
func parseSockets(text, protocol string) []socket {
	want := stateListen
	if protocol == guestproto.ProtocolUDP {
		want = stateClose
	}
	var found []socket
	for line := range strings.Lines(text) {
		// sl, local, remote, state, queues, timer, retransmits, uid, timeout, inode
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[3] != want {
			continue
		}
		if addr, ok := parseSocketAddr(fields[1]); ok && addr.Port() != 0 {
			found = append(found, socket{addr, fields[9]})
		}
	}
	return found
}

// parseSocketAddr parses ADDRESS:PORT, both in hexadecimal digits; the address is printed as 32-bit words in the order of
// bytes of the machine.
func parseSocketAddr(text string) (netip.AddrPort, bool) {
	host, number, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(number, 16, 16)
	if err != nil || len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, false
	}
	raw := make([]byte, 0, 16)
	for ; host != ""; host = host[8:] {
		word, err := strconv.ParseUint(host[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		raw = binary.NativeEndian.AppendUint32(raw, uint32(word))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}

// findOwners looks through the descriptors of all processes for sockets with the wanted inodes, and notes the names of the
// processes. It empties wanted as it finds them. Of processes that share a socket the first in the order of pids is taken:
// it is most often the one that made it.
func (fs procfs) findOwners(wanted map[string]bool, owners map[string]string) {
	pids := fs.pids()
	slices.SortFunc(pids, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for _, pid := range pids {
		if len(wanted) == 0 {
			return
		}
		dir, err := os.Open(filepath.Join(fs.proc, pid, "fd"))
		if err != nil {
			continue // it has ended, or is another user's (in tests)
		}
		names, _ := dir.Readdirnames(-1)
		_ = dir.Close()
		for _, name := range names {
			link, _ := os.Readlink(filepath.Join(fs.proc, pid, "fd", name))
			inode, isSocket := strings.CutPrefix(link, "socket:[")
			inode = strings.TrimSuffix(inode, "]")
			if isSocket && wanted[inode] {
				delete(wanted, inode)
				owners[inode] = fs.processName(pid)
			}
		}
	}
}

// processName returns the name of a process, fit to be printed.
func (fs procfs) processName(pid string) string {
	comm, err := fs.read(filepath.Join(pid, "comm"))
	if err != nil {
		return ""
	}
	name := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimRight(string(comm), "\n"))
	return name[:min(len(name), guestproto.MaxProcessName)]
}
