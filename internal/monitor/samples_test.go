package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "42 (a (b) 1 2) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 12345 1000000 77 18446744073709551615 1"
	cpu, resident, err := parseStat(line)
	if err != nil || cpu != int64(2*time.Second) || resident != 77*int64(os.Getpagesize()) {
		t.Errorf("%d, %d, %v", cpu, resident, err)
	}
	for _, bad := range []string{"", "42", "42 (a) S 1 2 3", strings.Replace(line, " 150 ", " x ", 1)} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestAllocatedCountsOwnDisksOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := func(name string, written int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, written), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 1<<30); err != nil {
			t.Fatal(err)
		}
		return path
	}
	got := allocated([]hypervisor.Disk{
		{Path: disk("base", 1<<20), ReadOnly: true}, {Path: disk("work", 128<<10)}, {Path: filepath.Join(dir, "gone")},
	})
	if got < 128<<10 || got > 512<<10 {
		t.Errorf("%d bytes", got)
	}
}

// at is a sample taken so many seconds after the beginning, with so many milliseconds of CPU time.
func at(seconds, cpu int64) monitorlink.Sample {
	return monitorlink.Sample{At: seconds * int64(time.Second), VMMCPU: cpu * int64(time.Millisecond)}
}

func TestHistoryIsBounded(t *testing.T) {
	t.Parallel()
	s := newSamples()
	if newest, _ := s.newest(); newest != nil {
		t.Errorf("newest of none: %v", newest)
	}
	const taken = historySize + 10
	for i := range int64(taken) {
		s.add(at(i+1, i*100))
	}
	all, count, _ := s.since(0)
	if len(all) != historySize || count != taken || all[0].At != 11*int64(time.Second) || all[historySize-1].At != taken*int64(time.Second) {
		t.Errorf("%d samples of %d, from %d", len(all), count, all[0].At)
	}
	for i := 1; i < len(all); i++ {
		if all[i].At <= all[i-1].At {
			t.Fatalf("sample %d is not in order", i)
		}
	}
	if newest, seen := s.newest(); newest[0].At != taken*int64(time.Second) || seen != taken || newest[0].CPUPercent != 10 {
		t.Errorf("newest: %+v, %d", newest, seen)
	}
	if newer, _, _ := s.since(taken - 2); len(newer) != 2 {
		t.Errorf("%d samples after the last but two", len(newer))
	}
	if size := unsafe.Sizeof(monitorlink.Sample{}) * historySize; size > 512<<10 {
		t.Errorf("an hour takes %d bytes", size)
	}
}

func TestCPUPercent(t *testing.T) {
	t.Parallel()
	s := newSamples()
	for _, step := range []struct {
		sample monitorlink.Sample
		want   float64
	}{
		{at(1, 500), 0}, // nothing to compare with
		{at(2, 1500), 100},
		{at(4, 2000), 25}, // after a pause
		{at(5, 2000), 0},
		{at(5, 3000), 0}, // at the same time
		{at(6, 100), 0},  // less than before: it can't be
	} {
		s.add(step.sample)
		if got, _ := s.newest(); got[0].CPUPercent != step.want {
			t.Errorf("%+v: %g%%, want %g%%", step.sample, got[0].CPUPercent, step.want)
		}
	}
}

func TestGuestFiguresGrowOld(t *testing.T) {
	t.Parallel()
	s := newSamples()
	s.answered(guestReading{at: time.Unix(100, 0), stats: guestproto.Stats{
		CPUNS: 7, MemoryTotal: 9, MemoryUsed: 8, Processes: 3, Disks: []guestproto.DiskStats{{Read: 1, Written: 10}, {Read: 2, Written: 20}},
	}}, true)
	s.answered(guestReading{}, false) // what was said stays
	last := 100 + int64(guestValid/time.Second)
	for second, known := range map[int64]bool{99: true, 100: true, last: true, last + 1: false} {
		s.add(at(second, 0))
		newest, _ := s.newest()
		want := at(second, 0)
		if known {
			want.HasGuest, want.GuestCPU, want.GuestMemory, want.GuestTotal = true, 7, 8, 9
			want.Processes, want.GuestRead, want.GuestWritten = 3, 3, 30
		}
		if newest[0] != want {
			t.Errorf("after %d s: %+v, want %+v", second, newest[0], want)
		}
	}
}

func TestGuestIsAskedOnlyWhileWanted(t *testing.T) {
	t.Parallel()
	s, now := newSamples(), time.Unix(1000, 0)
	if _, wanted := s.due(now); wanted {
		t.Error("wanted by nobody")
	}
	if s.ask(now) == nil {
		t.Error("nothing to wait for, though the guest has never answered")
	}
	if wait, wanted := s.due(now); !wanted || wait != 0 {
		t.Errorf("after a request: %t, %s", wanted, wait)
	}
	s.answered(guestReading{at: now}, true)
	if s.ask(now.Add(time.Second)) != nil {
		t.Error("waits for the guest, though it has just answered")
	}
	if wait, wanted := s.due(now.Add(2 * time.Second)); !wanted || wait != guestEvery-2*time.Second {
		t.Errorf("after an answer: %t, %s", wanted, wait)
	}
	if _, wanted := s.due(now.Add(time.Second + wantedFor)); wanted {
		t.Error("still wanted, long after the last request")
	}
}

// TestSendSamples follows samples over a connection, in a bubble with a clock of its own.
func TestSendSamples(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := New(monitorlink.Dirs{}, monitorlink.Launch{}, nil, slog.New(slog.DiscardHandler))
		for i := range int64(3) {
			m.samples.add(at(i+1, 0))
		}
		read := func(spec monitorlink.SamplesSpec, most int, ctx context.Context) (got string) {
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer server.Close() //nolint:errcheck // a test's end
				m.sendSamples(ctx, server, spec)
			}()
			for range most {
				var sample monitorlink.Sample
				if err := monitorlink.ReadLine(client, &sample); err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					got += "end"
					break
				}
				got += fmt.Sprintf("%d ", sample.At/int64(time.Second))
			}
			_ = client.Close()
			<-done
			return got
		}
		began := time.Now()
		if got := read(monitorlink.SamplesSpec{}, 9, t.Context()); got != "3 end" || time.Since(began) != guestWait {
			t.Errorf("the newest: %q after %s", got, time.Since(began))
		}
		if got := read(monitorlink.SamplesSpec{History: true}, 9, t.Context()); got != "1 2 3 end" {
			t.Errorf("history: %q", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(guestWait + 5*time.Second)
			m.samples.add(at(4, 0))
			time.Sleep(time.Second)
			m.samples.add(at(5, 0))
			time.Sleep(time.Second)
			cancel()
		}()
		if got := read(monitorlink.SamplesSpec{Follow: true}, 9, ctx); got != "3 4 5 end" {
			t.Errorf("follow: %q", got)
		}
		if got := read(monitorlink.SamplesSpec{Follow: true, History: true}, 5, t.Context()); got != "1 2 3 4 5 " {
			t.Errorf("a client that leaves: %q", got)
		}
	})
}

// TestNoSamplesWhilePaused samples this process as if it were a VMM.
func TestNoSamplesWhilePaused(t *testing.T) {
	t.Parallel()
	m := New(monitorlink.Dirs{}, monitorlink.Launch{}, nil, slog.New(slog.DiscardHandler))
	count := func() int64 {
		_, n := m.samples.newest()
		return n
	}
	synctest.Test(t, func(t *testing.T) {
		// Made here, for their channels belong to the bubble.
		m.board, m.samples = newBoard(monitorlink.Status{Paused: true}), newSamples()
		ctx, cancel := context.WithCancel(t.Context())
		go m.sample(ctx, os.Getpid(), nil)
		time.Sleep(10 * sampleEvery)
		synctest.Wait()
		if n := count(); n != 0 {
			t.Errorf("%d samples while paused", n)
		}
		m.board.update(func(s *monitorlink.Status) { s.Paused = false })
		time.Sleep(10 * sampleEvery)
		synctest.Wait()
		if n := count(); n != 10 {
			t.Errorf("%d samples in 10 s", n)
		}
		if newest, _ := m.samples.newest(); newest[0].VMMResident < 1<<20 {
			t.Errorf("a process of %d bytes", newest[0].VMMResident)
		}
		cancel()
		synctest.Wait()
	})
}
