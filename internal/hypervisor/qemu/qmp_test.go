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
	"strings"
	"sync"
	"testing"
	"time"
)

const greetingLine = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\n"

// connect returns a client and the other end of its connection.
func connect(t *testing.T) (*client, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := newClient(ours)
	go c.run()
	t.Cleanup(func() {
		_ = theirs.Close()
		<-c.done
	})
	return c, theirs
}

type request struct {
	Execute string
	ID      int64
}

// serve answers every command by a function, in a goroutine that ends with the connection.
func serve(conn net.Conn, answer func(request) string) {
	go func() {
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var r request
			if json.Unmarshal(lines.Bytes(), &r) != nil {
				return
			}
			if _, err := io.WriteString(conn, answer(r)); err != nil {
				return
			}
		}
	}()
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	c, qemu := connect(t)
	go func() {
		_, _ = io.WriteString(qemu, greetingLine)
		serve(qemu, func(r request) string { return fmt.Sprintf(`{"return": {"said": %q}, "id": %d}`+"\n", r.Execute, r.ID) })
	}()
	if err := c.negotiate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var answer struct{ Said string }
	if err := c.execute(t.Context(), "query-status", nil, &answer); err != nil || answer.Said != "query-status" {
		t.Errorf("execute() = %v, answer %+v", err, answer)
	}
}

func TestAnswersAreMatchedByID(t *testing.T) {
	t.Parallel()
	c, qemu := connect(t)
	const n = 20
	go func() { // answers in reverse order, with events between
		lines := bufio.NewScanner(qemu)
		var all []request
		for len(all) < n && lines.Scan() {
			var r request
			_ = json.Unmarshal(lines.Bytes(), &r)
			all = append([]request{r}, all...)
		}
		for _, r := range all {
			_, _ = fmt.Fprintf(qemu, "{\"event\": \"STOP\"}\r\n\r\n{\"return\": %q, \"id\": %d}\r\n", r.Execute, r.ID)
		}
	}()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			want, got := fmt.Sprintf("command-%d", i), ""
			if err := c.execute(t.Context(), want, nil, &got); err != nil || got != want {
				t.Errorf("execute(%s) = %q, %v", want, got, err)
			}
		})
	}
	wg.Wait()
}

func TestExecuteFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer string
		want   func(error) bool
	}{
		"refused": {`{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}` + "\n", func(err error) bool {
			e, ok := errors.AsType[*qmpError](err)
			return ok && e.Desc == "no such thing"
		}},
		"not JSON":      {"%d hello\n", disconnected},
		"not a message": {`{"id": %d}` + "\n", disconnected},
		"two in one":    {`{"return": {}, "event": "X", "id": %d}` + "\n", disconnected},
		"endless line":  {"%d" + strings.Repeat(" ", maxMessage), disconnected},
		"two greetings": {greetingLine + greetingLine + "%d", disconnected},
		"wrong type":    {`{"return": 5, "id": %d}` + "\n", func(err error) bool { return err != nil && !disconnected(err) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, qemu := connect(t)
			serve(qemu, func(r request) string { return fmt.Sprintf(c.answer, r.ID) })
			var result struct{}
			if err := client.execute(t.Context(), "x", nil, &result); !c.want(err) {
				t.Errorf("execute() = %v", err)
			}
		})
	}
}

func disconnected(err error) bool { return errors.Is(err, errDisconnected) }

func TestExecuteAfterEnd(t *testing.T) {
	t.Parallel()
	c, qemu := connect(t)
	_ = qemu.Close()
	<-c.done
	if err := c.execute(t.Context(), "x", nil, nil); !disconnected(err) {
		t.Errorf("execute() = %v", err)
	}
	if err := c.negotiate(t.Context()); !disconnected(err) {
		t.Errorf("negotiate() = %v", err)
	}
}

// A command that nobody answers ends with its context, and an answer that comes too late goes to nobody.
func TestExecuteHonoursContext(t *testing.T) {
	t.Parallel()
	c, qemu := connect(t)
	serve(qemu, func(r request) string {
		if r.Execute == "slow" {
			return "\n"
		}
		return fmt.Sprintf("{\"return\": {}, \"id\": %d}\n{\"return\": {}, \"id\": %d}\n", r.ID-1, r.ID)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("execute() = %v", err)
	}
	if err := c.execute(t.Context(), "quick", nil, nil); err != nil {
		t.Errorf("the next command fails: %v", err)
	}
}

func TestShutdownEventIsKept(t *testing.T) {
	t.Parallel()
	c, qemu := connect(t)
	if _, ok := c.ended(); ok {
		t.Error("an end before any event")
	}
	_, _ = io.WriteString(qemu, `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}, "timestamp": {"seconds": 1}}`+"\n")
	_ = qemu.Close()
	<-c.done
	if got, ok := c.ended(); !ok || got != (shutdown{Guest: true, Reason: "guest-reset"}) {
		t.Errorf("ended() = %+v, %v", got, ok)
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, seed := range []string{
		greetingLine,
		`{"return": {"status": "running", "running": true}, "id": 3}`,
		`{"error": {"class": "CommandNotFound", "desc": "x"}, "id": 1}`,
		`{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}`,
		`{"return": null, "id": 1e99}`, `[]`, `null`, ``, `{"id": "text"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseMessage(data)
		if err == nil && m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Errorf("parseMessage(%q) is no message", data)
		}
	})
}

// Whatever QEMU sends, the client ends with the connection and hands nothing to the wrong command.
func FuzzClient(f *testing.F) {
	f.Add([]byte(greetingLine + `{"return": {}, "id": 1}` + "\n"))
	f.Add([]byte(`{"return": {}, "id": 1}` + "\n" + `{"return": {}, "id": 1}` + "\n"))
	f.Add([]byte("\x00\xff\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		c := newClient(ours)
		id, answer := c.expect()
		go c.run()
		go func() {
			_, _ = io.Copy(theirs, bytes.NewReader(data))
			_ = theirs.Close()
		}()
		<-c.done
		_ = theirs.Close()
		select {
		case m := <-answer:
			if m.ID != id {
				t.Errorf("the answer %d went to the command %d", m.ID, id)
			}
		default:
		}
	})
}
