package monitor

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/monitorlink"
)

// link keeps a session with the agent. If the agent ends the session (it was killed, or it misbehaves), a new one is
// opened as soon as an agent answers; the guest can at worst make itself unreachable.
type link struct {
	restored *monitorlink.Restore // who a restored guest is from its first session on; nil: it boots

	mu      sync.Mutex
	session *guestlink.Session
}

// guestReady is the agent's first answer.
type guestReady struct {
	bootID, release, agent string
	at                     time.Time
	err                    error // a restored guest did not take its new identity
}

func newLink(restored *monitorlink.Restore) *link { return &link{restored: restored} }

// meet makes the guest of the first session what it is to be.
func (l *link) meet(ctx context.Context, s *guestlink.Session, hello guestproto.Hello) guestReady {
	g := guestReady{bootID: hello.BootID, release: hello.Kernel, agent: hello.Agent}
	if l.restored != nil {
		var id string
		if id, g.err = rename(ctx, s, l.restored); id != "" {
			g.bootID = id
		}
	}
	g.at = time.Now()
	return g
}

// retryPause bounds how often a misbehaving guest can make the host open sessions.
const retryPause = time.Second

// transport is the byte stream to the guest as one session sees it: the session's end leaves it open for the next one.
type transport struct{ net.Conn }

// Close makes reads and writes under way return.
func (t transport) Close() error { return t.SetDeadline(time.Unix(1, 0)) }

// keep opens sessions over the byte stream until the context ends, and then closes it.
func (l *link) keep(ctx context.Context, conn net.Conn, b *board, ready chan<- guestReady, log *slog.Logger) {
	defer conn.Close() //nolint:errcheck // nothing to flush
	first := true
	for ctx.Err() == nil {
		_ = conn.SetDeadline(time.Time{})
		s, hello, err := guestlink.Open(ctx, transport{conn})
		if err == nil {
			if first {
				told := l.meet(ctx, s, hello)
				l.set(s)
				ready <- told
				first = false
			} else {
				l.set(s)
				b.update(func(st *monitorlink.Status) { st.Reachable = true })
			}
			select {
			case <-s.Done():
			case <-ctx.Done():
			}
			l.set(nil)
			_ = s.Close()
			b.update(func(st *monitorlink.Status) { st.Reachable = false })
		}
		if ctx.Err() != nil {
			return
		}
		log.Warn("guest link is down", "err", err)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
}

func (l *link) set(s *guestlink.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session = s
}

// OpenStream opens a stream to the agent.
func (l *link) OpenStream(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return nil, fault.New(fault.Unavailable, "the agent in the guest does not answer").
			WithHint("look at the console: banger logs <vm>; restart the VM if it does not come back")
	}
	return s.OpenStream(ctx)
}
