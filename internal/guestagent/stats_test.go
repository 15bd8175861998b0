package guestagent

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/guestproto"
)

func TestParseCPU(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1 2 3\n": (1 + 2 + 3 + 6 + 7) * tick,
		"cpu  0 0 0 0 0 0 0 0":                        0,
		"cpu 1 2 3":                                   -1,
		"intr 1 2 3 4 5 6 7 8":                        -1,
		"cpu  1 -2 3 4 5 6 7 8":                       -1,
		"":                                            -1,
	} {
		got, err := parseCPU([]byte(text))
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestParseMemory(t *testing.T) {
	t.Parallel()
	total, used, err := parseMemory([]byte("MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n"))
	if total != 1000<<10 || used != 600<<10 || err != nil {
		t.Errorf("%d, %d, %v", total, used, err)
	}
	for _, bad := range []string{"", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemAvailable: 1 kB\n"} {
		if _, _, err := parseMemory([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestParseDisks(t *testing.T) {
	t.Parallel()
	const text = ` 254       0 vda 10 0 200 5 1 0 3 0 0 0 0
 254      16 vdb 1 2 3
   7       0 loop0 10 0 200 5 1 0 3 0 0 0 0
 254      32 vdc x 0 200 5 1 0 y 0 0 0 0
`
	got := parseDisks([]byte(text), func(disk string) string { return map[string]string{"vda": "base", "vdc": "work"}[disk] })
	if want := []guestproto.DiskStats{{Serial: "base", Read: 200 * 512, Written: 3 * 512}}; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

const socketHead = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestParseSockets(t *testing.T) {
	t.Parallel()
	// The kernel prints words in the machine's order of bytes; these are written for the one that this runs on.
	hex := func(addr string) (s string) {
		raw := netip.MustParseAddr(addr).AsSlice()
		for ; len(raw) > 0; raw = raw[4:] {
			s += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(raw))
		}
		return s
	}
	line := func(addr, port, state, inode string) string {
		return "   0: " + hex(addr) + ":" + port + " " + hex("0.0.0.0") + ":0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode + " 1 0 100 0 0 10 0\n"
	}
	tcp := socketHead + line("127.0.0.1", "1F90", "0A", "11") + line("10.0.2.15", "1F91", "01", "12") + line("::1", "0050", "0A", "13") +
		line("0.0.0.0", "0000", "0A", "14") + "   4: 0100007F:1F90\n" + "   5: XX00007F:1F90 0:0 0A a b c d e f\n"
	want := []socket{{netip.MustParseAddrPort("127.0.0.1:8080"), "11"}, {netip.MustParseAddrPort("[::1]:80"), "13"}}
	if got := parseSockets(tcp, "tcp"); !slices.Equal(got, want) {
		t.Errorf("tcp: %v, want %v", got, want)
	}
	udp := socketHead + line("0.0.0.0", "0044", "07", "21") + line("10.0.2.15", "C000", "01", "22")
	if got := parseSockets(udp, "udp"); !slices.Equal(got, []socket{{netip.MustParseAddrPort("0.0.0.0:68"), "21"}}) {
		t.Errorf("udp: %v", got)
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add(socketHead + "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n")
	f.Add("0: 00000000000000000000000001000000:0050 a 0A b c d e f 99\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range parseSockets(text, guestproto.ProtocolTCP) {
			p := guestproto.Ports{Ports: []guestproto.Port{{Protocol: "tcp", Address: s.addr.Addr().String(), Port: s.addr.Port()}}}
			if err := p.Check(); err != nil {
				t.Fatalf("%v: %v", s, err)
			}
		}
	})
}

func FuzzParseStats(f *testing.F) {
	f.Add("cpu  1 2 3 4 5 6 7 8\n", "MemTotal: 5 kB\nMemAvailable: 9 kB\n", "1 0 vda 1 2 3 4 5 6 7 8\n")
	f.Fuzz(func(t *testing.T, cpu, memory, disks string) {
		var s guestproto.Stats
		var err error
		if s.CPUNS, err = parseCPU([]byte(cpu)); err != nil {
			s.CPUNS = 0
		}
		if s.MemoryTotal, s.MemoryUsed, err = parseMemory([]byte(memory)); err != nil {
			s.MemoryTotal, s.MemoryUsed = 0, 0
		}
		s.Disks = parseDisks([]byte(disks), func(string) string { return "x" })
		if err := s.Check(); err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
	})
}

// TestPortTable reads a made-up /proc: whose sockets they are is found once, and forgotten with the socket.
func TestPortTable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, to string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	listen := func(port int, inode string) string {
		return fmt.Sprintf("0: 00000000:%04X 00000000:0000 0A 0 0 0 0 0 %s\n", port, inode)
	}
	write("net/tcp", listen(2000, "7")+listen(1000, "8")+listen(1000, "9")+listen(3000, "10"))
	write("12/comm", "second\n")
	link("12/fd/3", "socket:[7]")
	write("9/comm", "a\x1b\xffname that is long\n")
	link("9/fd/0", "/dev/null")
	link("9/fd/3", "socket:[7]")
	link("9/fd/4", "socket:[8]")
	table := portTable{fs: procfs{proc: dir}, owners: map[string]string{}}
	port := func(n uint16, name string) guestproto.Port {
		return guestproto.Port{Protocol: "tcp", Address: "0.0.0.0", Port: n, Process: name}
	}
	want := []guestproto.Port{port(1000, "a??name that is"), port(2000, "a??name that is"), port(3000, "")}
	if got, err := table.read(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	write("9/comm", "renamed\n")
	write("net/tcp", listen(2000, "7"))
	if got, err := table.read(); err != nil || !slices.Equal(got, want[1:2]) || len(table.owners) != 1 {
		t.Errorf("a known socket: %+v, %v, %v", got, err, table.owners)
	}
	var many strings.Builder
	for i := range guestproto.MaxPorts + 50 {
		many.WriteString(listen(1000+i, "0"))
	}
	write("net/tcp", many.String())
	if got, err := table.read(); err != nil || len(got) != guestproto.MaxPorts || got[0].Port != 1000 {
		t.Errorf("many: %d, %v", len(got), err)
	}
	if _, err := (&portTable{fs: procfs{proc: filepath.Join(dir, "none")}}).read(); err != nil {
		t.Errorf("no sockets at all: %v", err)
	}
}

func TestStatsOfThisMachine(t *testing.T) {
	t.Parallel()
	c := connect(t)
	first, err := c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first.MemoryTotal < 64<<20 || first.MemoryUsed < 1<<20 || first.Processes < 1 || first.CPUNS == 0 {
		t.Errorf("%+v", first)
	}
	for begin := time.Now(); time.Since(begin) < 50*time.Millisecond; { // more than a few ticks of one CPU
		_ = begin
	}
	if second, err := c.Stats(t.Context()); err != nil || second.CPUNS < first.CPUNS+2*tick {
		t.Errorf("after a busy loop: %d ns, before: %d ns, %v", second.CPUNS, first.CPUNS, err)
	}
}

// TestWatchPorts: a port is there while something listens on it, not before and not after.
func TestWatchPorts(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := connect(t)
	w, err := c.WatchPorts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	before, err := w.Next()
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's end
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	find := func(list []guestproto.Port) int {
		return slices.IndexFunc(list, func(p guestproto.Port) bool {
			return p.Protocol == "tcp" && p.Address == "127.0.0.1" && p.Port == port
		})
	}
	if find(before) >= 0 {
		t.Error("the port is there before anything listens on it")
	}
	for present := range 2 { // others on this machine may come and go
		for {
			list, err := w.Next()
			if err != nil {
				t.Fatal(err)
			}
			i := find(list)
			if present == 0 && i >= 0 {
				if name, _ := os.ReadFile("/proc/self/comm"); list[i].Process != strings.TrimSpace(string(name)) {
					t.Errorf("%+v, want the process %s", list[i], name)
				}
				_ = l.Close()
				break
			}
			if present == 1 && i < 0 {
				break
			}
		}
	}
}
