package machines

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// A spare is a VM that was restored from a template before anybody wants it: with a monitor and a VMM of its own, warmed, and
// paused, so that it costs memory but no CPU. It has a row like any other VM, is ephemeral and recorded as stopped, so that
// recovery removes it with its processes; its name is one that no user can give. Whoever creates a VM like it gets it:
// its row becomes that VM's in one statement (claimSpare), and the VM's start, instead of starting a monitor, tells the one that
// is there what its guest is from now on (wake). A claim that is cut off in between leaves a stopped VM, and a process that
// recovery ends.

// pool is what is known of the spares in memory. mu is not held over I/O.
type pool struct {
	ready  int   // for each template
	memory int64 // bytes that all may take up
	filler chan struct{}

	mu     sync.Mutex
	spares []spare // oldest first
	closed bool    // the daemon ends: there are to be no more
}

// spare is one that can be claimed.
type spare struct {
	id       microvm.ID
	key      string    // of its template
	template time.Time // when that was made
	home     string    // sum of what it has in its home directory
	since    time.Time
	memory   int64 // bytes that its processes took up when it was made
}

func newPool(c TemplateConfig) *pool {
	p := &pool{ready: c.Ready, memory: c.ReadyMemory, filler: make(chan struct{}, 1)}
	if c.Dir == "" {
		p.ready = 0
	}
	return p
}

// Times of spares.
const (
	spareMaxAge   = time.Hour // without anybody having wanted one of its kind
	sweepEvery    = 30 * time.Second
	refillDelay   = 500 * time.Millisecond // for the command that had the last one
	drainTimeout  = 20 * time.Second
	spareEstimate = 128 << 20 // bytes that one takes up, until it is known
	hostReserve   = 8         // one part in so many of the host's memory is left free of spares
)

// take removes a spare of a template from the pool: it is the caller's from now on.
func (p *pool) take(key string, template time.Time) (spare, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, sp := range p.spares {
		if sp.key == key && sp.template.Equal(template) && !p.closed {
			p.spares = slices.Delete(p.spares, i, i+1)
			return sp, true
		}
	}
	return spare{}, false
}

// takeAll removes all spares for which a test holds.
func (p *pool) takeAll(test func(spare) bool) (taken []spare) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spares = slices.DeleteFunc(p.spares, func(sp spare) bool {
		if test(sp) {
			taken = append(taken, sp)
			return true
		}
		return false
	})
	return taken
}

// put adds a spare, unless the daemon ends.
func (p *pool) put(sp spare) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.spares = append(p.spares, sp)
	}
	return !p.closed
}

func (p *pool) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.spares) == 0
}

// touch notes that somebody wanted a spare of a template.
func (p *pool) touch(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.spares {
		if p.spares[i].key == key {
			p.spares[i].since = time.Now()
		}
	}
}

// room reports whether there should be one more spare of a template, as far as the pool is concerned.
func (p *pool) room(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, sum, next := 0, int64(0), int64(spareEstimate)
	for _, sp := range p.spares {
		sum += sp.memory
		if sp.key == key {
			n++
			next = sp.memory
		}
	}
	return !p.closed && n < p.ready && sum+next <= p.memory
}

// run removes spares that should not be any more from time to time, and all of them when the context ends.
func (p *pool) run(ctx context.Context, s *core) {
	if p.ready == 0 {
		return
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			p.sweep(ctx, s)
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	p.drop(end, s, "the daemon ends", func(spare) bool { return true })
}

// sweep ends spares whose template or image is gone, those that nobody has wanted for long, and all of them if the host is
// short of memory.
func (p *pool) sweep(ctx context.Context, s *core) {
	if !plenty(s.config.HostMemory) {
		p.drop(ctx, s, "the host is short of memory", func(spare) bool { return true })
		return
	}
	p.drop(ctx, s, "it is not wanted any more", func(sp spare) bool { return time.Since(sp.since) > spareMaxAge })
	p.mu.Lock()
	kinds := map[string]time.Time{}
	for _, sp := range p.spares {
		kinds[sp.key] = sp.template
	}
	p.mu.Unlock()
	for key, made := range kinds {
		now, err := openPoint(s.templates.dir(key))
		if err == nil {
			_, err = s.sources.ImageByDigest(ctx, now.Traits.Image)
		}
		if err != nil || !now.Created.Equal(made) {
			p.drop(ctx, s, "its template is gone", func(sp spare) bool { return sp.key == key && sp.template.Equal(made) })
		}
	}
}

// drop ends spares.
func (p *pool) drop(ctx context.Context, s *core, why string, which func(spare) bool) {
	for _, sp := range p.takeAll(which) {
		s.log.InfoContext(ctx, "spare ended", "vm", sp.id, "cause", why)
		p.discard(ctx, s, sp.id)
	}
}

// discard ends a spare that is in the pool no more. What can't be done now is left to the next sweep: it is in the pool again, as
// one that nobody wants.
func (p *pool) discard(ctx context.Context, s *core, id microvm.ID) {
	if err := endSpare(ctx, s, id); err != nil {
		s.log.ErrorContext(ctx, "end spare", "vm", id, "err", err)
		p.put(spare{id: id})
	}
}

// endSpare removes a spare that is in the pool no more.
func endSpare(ctx context.Context, s *core, id microvm.ID) error {
	h, err := s.claimVM(ctx, microvm.VM{ID: id}, claimant{op: "end spare"})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.release()
	return h.delete(context.WithoutCancel(ctx))
}

// replenish makes spares until there are enough of them for VMs like the given one. One at a time is made.
func (p *pool) replenish(ctx context.Context, s *core, like microvm.VM, key string) {
	if p.ready == 0 {
		return
	}
	select {
	case <-time.After(refillDelay):
	case <-ctx.Done():
		return
	}
	select {
	case p.filler <- struct{}{}:
		defer func() { <-p.filler }()
	case <-ctx.Done():
		return
	}
	p.sweep(ctx, s)
	for ctx.Err() == nil && p.room(key) && plenty(s.config.HostMemory) {
		sp, err := makeSpare(ctx, s, like, key)
		if err == nil && !p.put(sp) {
			p.discard(context.WithoutCancel(ctx), s, sp.id)
			return
		}
		if err != nil {
			if ctx.Err() == nil && !fault.Is(err, fault.NotFound) {
				s.log.WarnContext(ctx, "make spare", "key", key, "err", err)
			}
			return
		}
		s.log.InfoContext(ctx, "spare made", "vm", sp.id, "key", key, "dur", time.Since(sp.since), "memory", sp.memory)
	}
}

// plenty reports whether the host has so much memory available that VMs which nobody wants yet may have some. What is not
// known is plenty.
func plenty(total int64) bool {
	text, err := os.ReadFile("/proc/meminfo") // proc(5)
	if err != nil || total <= 0 {
		return true
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib<<10 > total/hostReserve
		}
	}
	return true
}

// proportional returns the bytes of memory that processes take up, each page that several share counted in part.
func proportional(pids ...int) (sum int64) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)) // proc(5)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			var kib int64
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
				sum += kib << 10
			}
		}
	}
	return sum
}
