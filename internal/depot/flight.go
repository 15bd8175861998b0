package depot

import (
	"context"
	"sync"

	"banger/internal/progress"
)

// flight is one piece of work and those who wait for it.
type flight struct {
	cancel  context.CancelFunc
	done    chan struct{} // closed at the end
	err     error         // valid after done
	waiting int           // guarded by Depot.mu; 0: abandoned

	mu    sync.Mutex
	sinks map[int]progress.Sink
	next  int
	open  []progress.Update // the last update of every stage that hasn't ended: late comers get them first
}

func (f *flight) add(sink progress.Sink) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	ticket := f.next
	f.next++
	f.sinks[ticket] = sink
	for _, u := range f.open {
		sink.Send(u)
	}
	return ticket
}

func (f *flight) drop(ticket int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sinks, ticket)
}

func (f *flight) send(u progress.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, o := range f.open {
		if o.Stage == u.Stage {
			f.open = append(f.open[:i:i], f.open[i+1:]...)
			break
		}
	}
	if !u.Ended {
		f.open = append(f.open, u)
	}
	for _, s := range f.sinks {
		s.Send(u)
	}
}
