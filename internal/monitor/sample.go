package monitor

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guestlink"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// sample takes a sample a second, for as long as the VM runs and is not paused.
func (m *Monitor) sample(ctx context.Context, pid int, n *network) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		if !m.board.get().Paused {
			if sample, err := m.look(pid, n); err == nil { // else the VMM has just ended
				m.samples.add(sample)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look takes a sample of what can be seen from the host.
func (m *Monitor) look(pid int, n *network) (monitorlink.Sample, error) {
	s := monitorlink.Sample{At: time.Now().UnixNano()}
	// A process that has only just been executed has no memory yet; one that has ended has none either, but has run.
	for range 50 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil {
			s.VMMCPU, s.VMMResident, err = parseStat(string(stat))
		}
		if err != nil {
			return s, err
		}
		if s.VMMResident > 0 || s.VMMCPU > 0 {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	if n != nil {
		stats := n.net.Stats()
		s.NetReceived, s.NetSent, s.NetDenied = int64(stats.BytesOut), int64(stats.BytesIn), int64(stats.Denied) // far below 2^63
	}
	s.DiskUsed = allocated(m.launch.Machine.Disks)
	return s, nil
}

// clockTick is the unit of CPU times in /proc/pid/stat in ns: USER_HZ is 100 on all architectures, proc_pid_stat(5).
const clockTick = 10_000_000

// parseStat returns the CPU time in ns and the resident memory in bytes of a /proc/pid/stat.
func parseStat(text string) (cpu, resident int64, err error) {
	// The second field is in parentheses and may hold anything; the last ) ends it. Fields are counted from 1, and the one
	// after it is the third.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	field := func(number int) (n int64) {
		if number-3 >= len(fields) {
			err = fmt.Errorf("there are %d fields", len(fields)+2)
			return 0
		}
		n, perr := strconv.ParseInt(fields[number-3], 10, 64)
		if perr != nil {
			err = perr
		}
		return n
	}
	const utime, stime, rss = 14, 15, 24
	cpu = (field(utime) + field(stime)) * clockTick
	resident = field(rss) * int64(os.Getpagesize())
	if err != nil {
		return 0, 0, fmt.Errorf("parse /proc/pid/stat: %w", err)
	}
	return cpu, resident, nil
}

// allocated returns how many bytes the VM's own disks take on the host. Those that it shares with others don't count.
func allocated(disks []hypervisor.Disk) (sum int64) {
	for _, d := range disks {
		var st unix.Stat_t
		if !d.ReadOnly && unix.Stat(d.Path, &st) == nil {
			sum += st.Blocks * 512 // the unit of st_blocks, stat(3type)
		}
	}
	return sum
}

// askGuest asks the guest for its figures while somebody wants them and the guest can answer.
func (m *Monitor) askGuest(ctx context.Context) {
	client := guestlink.NewClient(m.link)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, wanted := m.samples.due(time.Now())
		if !wanted {
			select {
			case <-m.samples.want:
			case <-ctx.Done():
				return
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if st := m.board.get(); st.Paused || !st.Reachable {
			m.samples.answered(guestReading{}, false)
		} else {
			call, cancel := context.WithTimeout(ctx, guestTimeout)
			stats, err := client.Stats(call)
			cancel()
			m.samples.answered(guestReading{at: time.Now(), stats: stats}, err == nil)
			if err == nil {
				continue
			}
		}
		select { // for the guest to become able to answer
		case <-time.After(sampleEvery):
		case <-ctx.Done():
			return
		}
	}
}

// sendSamples sends a client the samples that it asked for.
func (m *Monitor) sendSamples(ctx context.Context, conn net.Conn, spec monitorlink.SamplesSpec) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // the client says nothing more; its end is the end
	}()
	if answered := m.samples.ask(time.Now()); answered != nil {
		select {
		case <-answered:
		case <-time.After(guestWait):
		case <-gone:
		case <-ctx.Done():
		}
	}
	batch, seen := m.samples.newest()
	if spec.History {
		batch, seen, _ = m.samples.since(0)
	}
	for {
		_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
		for _, sample := range batch {
			if monitorlink.WriteLine(conn, sample) != nil {
				return
			}
		}
		if !spec.Follow {
			return
		}
		m.samples.ask(time.Now())
		var changed <-chan struct{}
		if batch, seen, changed = m.samples.since(seen); len(batch) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}
