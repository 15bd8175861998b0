package monitor

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/monitorlink"
)

// requestTimeout bounds how long a client may take to say what it wants; lastRequest, once the VMM has ended.
const (
	requestTimeout = 5 * time.Second
	lastRequest    = 200 * time.Millisecond
)

// serve answers clients until the VMM has ended. Watchers are served longer: they learn of the end.
func (m *Monitor) serve(ctx context.Context, vmm hypervisor.VMM) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = m.listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		conn, err := m.listener.AcceptUnix()
		if err != nil {
			return
		}
		wg.Go(func() { m.handle(ctx, conn, vmm) })
	}
}

// handle answers one client.
func (m *Monitor) handle(ctx context.Context, conn *net.UnixConn, vmm hypervisor.VMM) {
	req, err := readRequest(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return
	}
	if req.Op == monitorlink.OpWatch {
		if answer(conn, nil) != nil {
			_ = conn.Close()
			return
		}
		// Not waited for by serve: it ends after the VMM, with the board.
		m.board.readers.Add(1)
		go m.watch(conn)
		return
	}
	defer conn.Close() //nolint:errcheck // nothing to flush
	cut := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer cut()
	switch req.Op {
	case monitorlink.OpStream:
		stream, err := m.link.OpenStream(ctx)
		if answer(conn, err) == nil && err == nil {
			m.attached.Add(1)
			defer m.attached.Add(-1)
			join(conn, stream)
		}
	case monitorlink.OpConsole, monitorlink.OpFollow:
		if answer(conn, nil) == nil {
			m.attached.Add(1)
			defer m.attached.Add(-1)
			m.attach(conn, req.Op == monitorlink.OpFollow)
		}
	case monitorlink.OpKill:
		cut() // what was asked for is no reason not to answer
		vmm.Kill()
		_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
		_ = answer(conn, nil)
	case monitorlink.OpSignal:
		// The VMM is our child: until it has been waited for, its pid is nobody else's.
		_ = answer(conn, unix.Kill(vmm.Pid(), unix.Signal(req.Signal)))
	case monitorlink.OpSamples:
		var spec monitorlink.SamplesSpec
		if req.Samples != nil {
			spec = *req.Samples
		}
		if answer(conn, nil) == nil {
			m.sendSamples(ctx, conn, spec)
		}
	case monitorlink.OpGrow:
		_ = answer(conn, m.saver.unless(func() error { return grow(ctx, vmm, req.Grow) }))
	case monitorlink.OpSave:
		cut() // the VM's end is to be told, too
		m.saver.serve(ctx, conn, vmm, req.Save, &m.attached)
	case monitorlink.OpSet:
		before, err := m.set(ctx, vmm, req.Set)
		if answer(conn, err) == nil && err == nil {
			_ = monitorlink.WriteLine(conn, before)
		}
	case monitorlink.OpClaim:
		_ = answer(conn, m.saver.unless(func() error { return m.claim(ctx, vmm, req.Claim) }))
	case monitorlink.OpPause, monitorlink.OpResume:
		_ = answer(conn, m.saver.unless(func() error { return m.pause(ctx, vmm, req.Op == monitorlink.OpPause) }))
	default:
		_ = answer(conn, fault.New(fault.Unsupported, "this monitor does not know the request %q", req.Op).
			WithHint("it was started by an older banger; restart the VM"))
	}
}

// readRequest reads what a client wants. One that says nothing holds the monitor up for lastRequest at most.
func readRequest(ctx context.Context, conn net.Conn) (monitorlink.Request, error) {
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = conn.SetDeadline(time.Now().Add(lastRequest))
	})
	var req monitorlink.Request
	err := monitorlink.ReadLine(conn, &req)
	if !stop() {
		<-fired
	}
	_ = conn.SetDeadline(time.Time{})
	return req, err
}

func (m *Monitor) pause(ctx context.Context, vmm hypervisor.VMM, pause bool) error {
	act := vmm.Resume
	if pause {
		act = vmm.Pause
	}
	if err := act(ctx); err != nil {
		return err
	}
	m.board.update(func(s *monitorlink.Status) { s.Paused = pause })
	return nil
}

func answer(conn net.Conn, err error) error {
	var res monitorlink.Response
	if err != nil {
		res = monitorlink.Response{Kind: fault.KindOf(err).String(), Message: err.Error(), Hint: fault.HintOf(err)}
	}
	return monitorlink.WriteLine(conn, res)
}

// watch sends the status at each change until the end.
func (m *Monitor) watch(conn net.Conn) {
	defer m.board.readers.Done()
	defer conn.Close() //nolint:errcheck // nothing to flush
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // the client says nothing more; its end is the end
	}()
	for {
		status, changed, last := m.board.next()
		_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
		if monitorlink.WriteLine(conn, status) != nil || last {
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

// attach connects a client with the console.
func (m *Monitor) attach(conn net.Conn, history bool) {
	r, past := m.console.attach(history)
	defer m.console.detach(r)
	if past != nil {
		_, err := io.Copy(conn, past)
		_ = past.Close()
		if err != nil {
			return
		}
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if n > 0 && m.console.send(buf[:n]) != nil || err != nil {
				return
			}
		}
	}()
	for {
		out, err := m.console.read(r, gone)
		if err != nil {
			return
		}
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

// join copies bytes both ways until either side ends. The protocol on top has end marks of its own, so the end of a side
// means that nothing more is to be said.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() {
		_ = a.Close()
		_ = b.Close()
	})
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			end()
		})
	}
	wg.Wait()
}
