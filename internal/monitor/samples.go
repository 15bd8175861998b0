package monitor

import (
	"sync"
	"time"

	"banger/internal/guestproto"
	"banger/internal/monitorlink"
)

// Times of sampling.
const (
	sampleEvery = time.Second
	historySize = 3600 // samples: an hour

	// What is asked of the guest costs the guest, most of all under software emulation, where an answer takes some 14 ms of
	// its CPU. So it is asked every guestEvery, and only while somebody wants to know: for wantedFor after the last request.
	guestEvery = 5 * time.Second
	wantedFor  = time.Minute
	// guestTimeout bounds one answer; guestWait, how long a request waits for the guest if its figures are old.
	guestTimeout = 3 * time.Second
	guestWait    = 2 * time.Second
	// guestValid is how old the guest's figures may be in a sample.
	guestValid = guestEvery + guestTimeout
)

// samples is the history of a VM's use, and what the guest has said last. It wakes those who follow it.
type samples struct {
	mu      sync.Mutex
	ring    []monitorlink.Sample // grows to historySize; then next is the oldest
	next    int
	count   int64         // samples ever taken
	changed chan struct{} // closed and replaced at each sample

	guest   guestReading
	wanted  time.Time     // the guest's figures are asked for until then
	want    chan struct{} // capacity 1: somebody wants them
	answers chan struct{} // closed and replaced at each answer of the guest, or failure to answer
}

// guestReading is what the guest has said, and when.
type guestReading struct {
	at    time.Time
	stats guestproto.Stats
}

func newSamples() *samples {
	return &samples{changed: make(chan struct{}), want: make(chan struct{}, 1), answers: make(chan struct{})}
}

// add completes a sample and keeps it.
func (s *samples) add(sample monitorlink.Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last(); ok && sample.At > last.At && sample.VMMCPU > last.VMMCPU {
		sample.CPUPercent = 100 * float64(sample.VMMCPU-last.VMMCPU) / float64(sample.At-last.At)
	}
	s.guest.complete(&sample)
	if len(s.ring) < historySize {
		s.ring = append(s.ring, sample)
	} else {
		s.ring[s.next] = sample
		s.next = (s.next + 1) % historySize
	}
	s.count++
	close(s.changed)
	s.changed = make(chan struct{})
}

// complete writes the guest's figures into a sample, unless they are too old for it.
func (g guestReading) complete(sample *monitorlink.Sample) {
	if g.at.IsZero() || sample.Time().Sub(g.at) > guestValid {
		return
	}
	sample.HasGuest = true
	sample.GuestCPU, sample.GuestMemory, sample.GuestTotal = g.stats.CPUNS, g.stats.MemoryUsed, g.stats.MemoryTotal
	sample.Processes = int32(g.stats.Processes) // bounded by guestlink
	sample.GuestRead, sample.GuestWritten = 0, 0
	for _, d := range g.stats.Disks {
		sample.GuestRead += d.Read
		sample.GuestWritten += d.Written
	}
}

// last is the newest sample. mu is held.
func (s *samples) last() (monitorlink.Sample, bool) {
	if len(s.ring) == 0 {
		return monitorlink.Sample{}, false
	}
	return s.ring[(s.next+len(s.ring)-1)%len(s.ring)], true
}

// newest returns the newest sample, if there is one, with what the guest has said since. seen is for since.
func (s *samples) newest() (newest []monitorlink.Sample, seen int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sample, ok := s.last()
	if !ok {
		return nil, s.count
	}
	s.guest.complete(&sample)
	return []monitorlink.Sample{sample}, s.count
}

// since returns the samples after those that were seen, oldest first, and a channel that is closed when there is another.
func (s *samples) since(seen int64) (newer []monitorlink.Sample, count int64, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int(min(s.count-seen, int64(len(s.ring))))
	for i := len(s.ring) - n; i < len(s.ring); i++ {
		newer = append(newer, s.ring[(s.next+i)%len(s.ring)])
	}
	return newer, s.count, s.changed
}

// ask says that somebody wants the guest's figures from now on. It returns a channel that is closed when the guest has
// answered or failed to, or nil if what it has said is recent.
func (s *samples) ask(now time.Time) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = now.Add(wantedFor)
	select {
	case s.want <- struct{}{}:
	default:
	}
	if !s.guest.at.IsZero() && now.Sub(s.guest.at) < guestEvery+time.Second {
		return nil
	}
	return s.answers
}

// due returns how long to wait before the guest is to be asked, or false if nobody wants to know.
func (s *samples) due(now time.Time) (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(0, s.guest.at.Add(guestEvery).Sub(now)), now.Before(s.wanted)
}

// answered keeps what the guest has said; ok is false if it has not answered.
func (s *samples) answered(g guestReading, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ok {
		s.guest = g
	}
	close(s.answers)
	s.answers = make(chan struct{})
}
