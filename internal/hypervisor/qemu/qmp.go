package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"banger/internal/fault"
)

// maxMessage is the longest QMP message that is read, in bytes. The longest that is asked for is well below 4 KiB; a
// QEMU that a guest has taken over must not fill the memory of its parent.
const maxMessage = 256 << 10

// writeTimeout bounds the sending of one command. Commands are far smaller than a socket's buffer, so that only a QEMU
// which has stopped reading lets one wait.
const writeTimeout = 5 * time.Second

// errDisconnected says that the QMP connection has ended.
var errDisconnected = errors.New("the QMP connection has ended")

// message is what QEMU sends: the greeting, an answer (return or error) or an event (QMP specification, "Protocol
// Specification").
type message struct {
	Greeting *greeting       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	ID       int64           `json:"id"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

type greeting struct {
	Version struct {
		QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
	} `json:"version"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// shutdown is the data of the SHUTDOWN event. Reason is one of QEMU's ShutdownCause (qapi/run-state.json).
type shutdown struct {
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"`
}

// parseMessage reads one line of QMP. It must be exactly one kind of message.
func parseMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("parse QMP message: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, fmt.Errorf("parse QMP message: it is of %d kinds, not of one", kinds)
	}
	return m, nil
}

// client is one end of a QMP connection. It is safe for concurrent use: answers are matched to commands by their ids.
// One goroutine, that of run, reads.
type client struct {
	conn    net.Conn
	greeted chan struct{} // closed by the greeting
	done    chan struct{} // closed when run has returned; err is set then
	err     error
	writing chan struct{} // holds one token: the right to write

	mu      sync.Mutex // guards what follows; never held over I/O
	lastID  int64
	waiting map[int64]chan message
	end     shutdown // of the SHUTDOWN event; Reason is empty before it
}

func newClient(conn net.Conn) *client {
	return &client{
		conn:    conn,
		greeted: make(chan struct{}),
		done:    make(chan struct{}),
		writing: make(chan struct{}, 1),
		waiting: map[int64]chan message{},
	}
}

// run reads until the connection ends, then closes it.
func (c *client) run() {
	defer close(c.done)
	c.err = c.read()
	_ = c.conn.Close()
}

func (c *client) read() error {
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 0, 1<<10), maxMessage)
	greeted := false
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		m, err := parseMessage(line)
		if err != nil {
			return err
		}
		switch {
		case m.Greeting != nil && greeted:
			return errors.New("QEMU greeted twice")
		case m.Greeting != nil:
			greeted = true
			close(c.greeted)
		case m.Event != "":
			c.take(m)
		default:
			c.answer(m)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read QMP: %w", err)
	}
	return io.EOF
}

// take notes the one event that matters. Unknown events are legal.
func (c *client) take(m message) {
	if m.Event != "SHUTDOWN" {
		return
	}
	var s shutdown
	if err := json.Unmarshal(m.Data, &s); err != nil || s.Reason == "" {
		s.Reason = "unknown"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = s
}

// answer hands an answer to the command that waits for it, if it still does.
func (c *client) answer(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch, ok := c.waiting[m.ID]; ok {
		delete(c.waiting, m.ID)
		ch <- m // has room for one, and gets one
	}
}

// ended returns the data of the SHUTDOWN event, if there was one.
func (c *client) ended() (shutdown, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end, c.end.Reason != ""
}

// negotiate waits for the greeting and enters command mode.
func (c *client) negotiate(ctx context.Context) error {
	select {
	case <-c.greeted:
	case <-c.done:
		return errDisconnected
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU's greeting: %w", context.Cause(ctx))
	}
	return c.execute(ctx, "qmp_capabilities", nil, nil)
}

// execute runs one command and decodes its answer into result, unless that is nil. A refusal is a *qmpError; an ended
// connection is errDisconnected. A command whose context ends may still take effect.
func (c *client) execute(ctx context.Context, command string, arguments, result any) error {
	return c.executeWith(ctx, command, arguments, result, nil)
}

// executeWith is execute with a file that goes along, unless it is nil.
func (c *client) executeWith(ctx context.Context, command string, arguments, result any, file *os.File) error {
	id, answer := c.expect()
	defer c.forget(id)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int64  `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	if err := c.write(ctx, append(line, '\n'), file); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("QMP %s: %w", command, m.Error)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fault.New(fault.Corrupt, "QMP %s: decode the answer: %w", command, err)
		}
		return nil
	case <-c.done:
		return fmt.Errorf("QMP %s: %w", command, errDisconnected)
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	}
}

func (c *client) expect() (id int64, answer chan message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	answer = make(chan message, 1)
	c.waiting[c.lastID] = answer
	return c.lastID, answer
}

func (c *client) forget(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *client) write(ctx context.Context, line []byte, file *os.File) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-c.done:
		return errDisconnected
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return errDisconnected
	}
	if err := c.send(line, file); err != nil {
		// Part of the line may be out: what follows would not be understood.
		_ = c.conn.Close()
		return fmt.Errorf("%w: %w", errDisconnected, err)
	}
	return nil
}

func (c *client) send(line []byte, file *os.File) error {
	if file == nil {
		_, err := c.conn.Write(line)
		return err
	}
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files travel over unix sockets only")
	}
	n, _, err := conn.WriteMsgUnix(line, syscall.UnixRights(int(file.Fd())), nil) //nolint:gosec // a descriptor is a small number
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	return err
}
