package rpcapi

import (
	"errors"
	"io"
	"sync"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

// inputWindow is how much of a command's input a client may have sent that the command has not been given yet, in bytes. So
// much is held here; a client that keeps to it never waits behind its own input with a signal.
const inputWindow = guestproto.StdinWindow

// input passes a client's messages on to a command. What the command does not read waits in a queue, beside which signals,
// resizes and the end of the stream get through. It has two goroutines: one receives, one feeds.
type input struct {
	a *attachStream
	p *guestlink.Process

	mu     sync.Mutex
	change sync.Cond
	queue  [][]byte
	size   int  // of the queue, in bytes
	ended  bool // no more is to come
	off    bool // nothing is wanted any more
	fed    chan struct{}
}

// startInput begins to pass on the client's messages.
func startInput(a *attachStream, p *guestlink.Process) *input {
	in := &input{a: a, p: p, fed: make(chan struct{})}
	in.change.L = &in.mu
	go in.receive()
	go in.feed()
	return in
}

// stop ends the passing on. When it has returned, nothing is sent to the client any more. The receiving goroutine ends with
// the call.
func (in *input) stop() {
	in.finish(&in.off)
	_ = in.p.Close() // the feeder may wait for it
	<-in.fed
}

// receive takes the client's messages until it is gone. Requests that make no sense are dropped: the command has already
// started and goes on. So is what cannot be passed on: a command may close its input and go on, and the other messages still
// have to reach it.
func (in *input) receive() {
	for {
		req, err := in.a.stream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				in.finish(&in.ended)
			}
			return
		}
		switch k := req.GetKind().(type) {
		case *bangerv1.AttachRequest_Stdin:
			in.put(k.Stdin)
		case *bangerv1.AttachRequest_CloseStdin:
			in.finish(&in.ended)
		case *bangerv1.AttachRequest_Resize:
			if rows, cols, err := fromSize(k.Resize); err == nil {
				_ = in.p.Resize(rows, cols)
			}
		case *bangerv1.AttachRequest_Signal:
			if guestproto.CheckSignal(int(k.Signal)) == nil {
				_ = in.p.Signal(int(k.Signal))
			}
		}
	}
}

// put queues input. A client that sends more than it was given credit for waits here, with all that it sends after it.
func (in *input) put(b []byte) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.size > 0 && in.size+len(b) > inputWindow && !in.off {
		in.change.Wait()
	}
	if in.ended || in.off || len(b) == 0 {
		return
	}
	in.queue = append(in.queue, b)
	in.size += len(b)
	in.change.Broadcast()
}

func (in *input) finish(flag *bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	*flag = true
	in.change.Broadcast()
}

// take waits for input and returns some. It returns nothing at the end; ended tells whether that is the input's own.
func (in *input) take() (b []byte, ended bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.queue) == 0 && !in.ended && !in.off {
		in.change.Wait()
	}
	if in.off || len(in.queue) == 0 {
		return nil, !in.off
	}
	b = in.queue[0]
	in.queue[0] = nil
	in.queue = in.queue[1:]
	in.size -= len(b)
	in.change.Broadcast()
	return b, false
}

// feed gives the command its input and the client credit for more.
func (in *input) feed() {
	defer close(in.fed)
	in.credit(inputWindow)
	for {
		b, ended := in.take()
		if b == nil {
			if ended {
				_ = in.p.CloseStdin()
			}
			return
		}
		if _, err := in.p.Write(b); err != nil {
			return // the command has ended, which is told elsewhere
		}
		in.credit(len(b))
	}
}

// credit lets the client send n bytes more. A client that is not there is noticed elsewhere.
func (in *input) credit(n int) {
	_ = in.a.send(&bangerv1.AttachResponse{Kind: &bangerv1.AttachResponse_StdinCredit{StdinCredit: int64(n)}})
}
