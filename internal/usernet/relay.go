package usernet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// chunk is how much is copied at a time: the largest datagram.
const chunk = 64 << 10

// chunks holds buffers between uses. Nobody holds one while waiting, so that connections at rest cost none.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }} //nolint:gochecknoglobals // a pool

// hostReader reads from a socket without holding a buffer while there is nothing to read.
type hostReader struct{ raw syscall.RawConn }

func newHostReader(conn syscall.Conn) (hostReader, error) {
	raw, err := conn.SyscallConn()
	return hostReader{raw}, err
}

// next waits for data and calls use with it. At the end of a stream, and for an empty datagram, the data is empty. The
// socket's errors, its deadline's among them, are returned.
func (r hostReader) next(use func([]byte) error) error {
	var buf *[chunk]byte
	defer func() {
		if buf != nil {
			chunks.Put(buf)
		}
	}()
	var n int
	var rerr error
	err := r.raw.Read(func(fd uintptr) bool {
		buf, _ = chunks.Get().(*[chunk]byte)
		for {
			n, rerr = unix.Read(int(fd), buf[:])
			if !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if errors.Is(rerr, unix.EAGAIN) {
			chunks.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return err
	}
	return use(buf[:n])
}

// relay copies between a guest's connection and a host's, each way until its end, which it passes on (FIN for FIN). It
// returns when both directions have ended. If one fails it resets the other side and returns false.
func relay(spawn func(func()) bool, ep tcpip.Endpoint, wq *waiter.Queue, conn net.Conn) bool {
	host, ok := conn.(interface {
		net.Conn
		syscall.Conn
		CloseWrite() error
	})
	if !ok {
		return false
	}
	fromHost := make(chan error, 1)
	if !spawn(func() {
		err := hostToGuest(ep, wq, host)
		if err != nil {
			ep.Abort() // wakes the other direction
		}
		fromHost <- err
	}) {
		return false
	}
	err := guestToHost(ep, wq, host)
	if err == nil {
		err = host.CloseWrite()
		if errors.Is(err, syscall.ENOTCONN) { // the host's peer has reset it; the other direction says so
			err = nil
		}
	}
	if err != nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // RST instead of FIN
		}
		_ = conn.Close() // wakes the other direction
	}
	return errors.Join(err, <-fromHost) == nil
}

// guestToHost copies until the guest closes its half.
func guestToHost(ep tcpip.Endpoint, wq *waiter.Queue, host io.Writer) error {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	for {
		buf, _ := chunks.Get().(*[chunk]byte)
		w := tcpip.SliceWriter(buf[:])
		res, terr := ep.Read(&w, tcpip.ReadOptions{})
		var err error
		if terr == nil {
			_, err = host.Write(buf[:res.Count])
			ep.ModerateRecvBuf(res.Count)
		}
		chunks.Put(buf)
		if err != nil {
			return err
		}
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-ready
		case *tcpip.ErrClosedForReceive:
			return nil
		default:
			return errors.New(terr.String())
		}
	}
}

// hostToGuest copies until the host's peer closes its half, and then closes it towards the guest.
func hostToGuest(ep tcpip.Endpoint, wq *waiter.Queue, host syscall.Conn) error {
	r, err := newHostReader(host)
	if err != nil {
		return err
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	for ended := false; !ended; {
		err := r.next(func(b []byte) error {
			ended = len(b) == 0
			return writeGuest(ep, ready, b)
		})
		if err != nil {
			return err
		}
	}
	ep.Shutdown(tcpip.ShutdownWrite)
	return nil
}

// writeGuest writes all of b; ready fires when there may be room again.
func writeGuest(ep tcpip.Endpoint, ready <-chan struct{}, b []byte) error {
	var r bytes.Reader
	for len(b) != 0 {
		r.Reset(b)
		n, terr := ep.Write(&r, tcpip.WriteOptions{})
		b = b[n:]
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-ready
		default:
			return errors.New(terr.String())
		}
	}
	return nil
}
