package rpcclient

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// Streams is what a command in a guest is connected to.
type Streams struct {
	Stdin          io.Reader // read if the command's spec says that there is input, and no further than the command takes it
	Stdout, Stderr io.Writer
	Signals        <-chan syscall.Signal
	Sizes          <-chan *bangerv1.WindowSize
	Started        func()
}

// Exec runs a command in a VM, which is a name, an id or an unambiguous prefix of one, to its end. When the context ends, the
// command is hung up. A read of Streams.Stdin may outlast Exec; what it returns is lost.
func (c *Client) Exec(ctx context.Context, vm string, spec *bangerv1.ExecSpec, s Streams) (*bangerv1.ExitStatus, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.VMs.Exec(ctx)
	start := &bangerv1.AttachStart{Target: &bangerv1.AttachStart_Vm{Vm: vm}, Exec: spec}
	err := stream.Send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Start{Start: start}})
	if err != nil && !errors.Is(err, io.EOF) { // then Receive says why
		return nil, err
	}
	x := &execution{stream: stream, streams: s, credit: NewCredit()}
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Unavailable, "the daemon ended the session without the command's exit status").
				WithHint("see its log: banger daemon logs")
		}
		if err != nil {
			return nil, err
		}
		switch kind := msg.GetKind().(type) {
		case *bangerv1.AttachResponse_Started:
			if x.input != nil {
				return nil, fault.New(fault.Corrupt, "the daemon says twice that the command has started")
			}
			x.input = make(chan *bangerv1.AttachRequest)
			if s.Started != nil {
				s.Started()
			}
			go x.send(ctx)
			if spec.GetStdin() {
				go x.read(ctx)
			}
		case *bangerv1.AttachResponse_StdinCredit:
			x.credit.Grow(kind.StdinCredit)
		case *bangerv1.AttachResponse_Stdout:
			_, err = s.Stdout.Write(kind.Stdout)
		case *bangerv1.AttachResponse_Stderr:
			_, err = s.Stderr.Write(kind.Stderr)
		case *bangerv1.AttachResponse_Exit:
			return kind.Exit, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// execution is a command of Exec.
type execution struct {
	stream  *connect.BidiStreamForClient[bangerv1.AttachRequest, bangerv1.AttachResponse]
	streams Streams
	credit  *Credit
	input   chan *bangerv1.AttachRequest
}

// send is the only one that sends after the start.
func (x *execution) send(ctx context.Context) {
	for {
		var msg *bangerv1.AttachRequest
		select {
		case sig := <-x.streams.Signals:
			msg = &bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Signal{Signal: int32(sig)}} // 1 to 64
		case size := <-x.streams.Sizes:
			msg = &bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Resize{Resize: size}}
		case msg = <-x.input:
		case <-ctx.Done():
			return
		}
		if x.stream.Send(msg) != nil {
			return // receiving says why
		}
	}
}

// inputBlock is the most that is read from standard input at once, in bytes.
const inputBlock = 32 << 10

func (x *execution) read(ctx context.Context) {
	post := func(msg *bangerv1.AttachRequest) bool {
		select {
		case x.input <- msg:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		room, ok := x.credit.Wait(ctx)
		if !ok {
			return
		}
		buf := make([]byte, min(inputBlock, room)) // the sender still has the one before
		n, err := x.streams.Stdin.Read(buf)
		x.credit.Use(n)
		if n > 0 && !post(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Stdin{Stdin: buf[:n]}}) {
			return
		}
		if err != nil {
			post(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_CloseStdin{CloseStdin: true}})
			return
		}
	}
}

// Credit is how many bytes of input may be sent to a command, so that what it does not read lies in front of no signal. One
// goroutine takes, another gives.
type Credit struct {
	left atomic.Int64
	more chan struct{} // capacity 1: there is more than before
}

// NewCredit returns a credit of nothing.
func NewCredit() *Credit { return &Credit{more: make(chan struct{}, 1)} }

// Grow gives n bytes more.
func (c *Credit) Grow(n int64) {
	c.left.Add(max(n, 0))
	select {
	case c.more <- struct{}{}:
	default: // whoever waits looks anyway
	}
}

// Use takes n bytes.
func (c *Credit) Use(n int) { c.left.Add(-int64(n)) }

// Wait returns how much may be sent, once that is anything. It reports false if the context ends first.
func (c *Credit) Wait(ctx context.Context) (int64, bool) {
	for {
		if n := c.left.Load(); n > 0 {
			return n, true
		}
		select {
		case <-c.more:
		case <-ctx.Done():
			return 0, false
		}
	}
}
