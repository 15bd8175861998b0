package cli

import (
	"context"
	"os"
	"sync"
	"syscall"
)

// signals gives each signal of the process to whoever is in charge: an attached session that forwards it to the guest,
// or else the default, which ends the program's context.
type signals struct {
	mu     sync.Mutex
	taker  func(syscall.Signal) bool
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string {
	if e.signal == syscall.SIGINT {
		return "interrupted"
	}
	return "ended by signal: " + e.signal.String()
}

// takeSignals returns a context that ends with a *signalError on the first signal that nobody else takes.
func takeSignals(ctx context.Context, from <-chan os.Signal) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &signals{cancel: cancel, done: make(chan struct{})}
	go func() {
		for {
			select {
			case sig := <-from:
				if n, ok := sig.(syscall.Signal); ok {
					s.handle(n)
				}
			case <-s.done:
				return
			}
		}
	}()
	return ctx, s
}

func (s *signals) handle(sig syscall.Signal) {
	s.mu.Lock()
	taker := s.taker
	s.mu.Unlock()
	if taker != nil && taker(sig) {
		return
	}
	switch sig {
	case syscall.SIGWINCH, syscall.SIGPIPE:
	default:
		s.cancel(&signalError{sig})
	}
}

// divert gives signals to a taker, which returns false for those it leaves to the default. It must not block. Call
// restore to end this.
func (s *signals) divert(taker func(syscall.Signal) bool) (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taker = taker
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taker = nil
	}
}

func (s *signals) stop() {
	close(s.done)
	s.cancel(context.Canceled)
}
