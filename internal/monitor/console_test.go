package monitor

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// guestConsole starts a console and returns it with the guest's end of the line.
func guestConsole(t *testing.T, path string) (*console, net.Conn) {
	t.Helper()
	c := newConsole(path)
	host, guest := net.Pipe()
	go c.pump(host)
	t.Cleanup(func() {
		_ = guest.Close()
		<-c.drained
	})
	return c, guest
}

func say(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// readAll reads what an attached reader gets until the end.
func readAll(t *testing.T, c *console, r *reader, past io.Reader) string {
	t.Helper()
	var out []byte
	if past != nil {
		var err error
		if out, err = io.ReadAll(past); err != nil {
			t.Error(err)
		}
	}
	for {
		p, err := c.read(r, nil)
		if errors.Is(err, io.EOF) {
			return string(out)
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p...)
	}
}

func TestConsoleGoesToLogAndReaders(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console.log")
	if err := os.WriteFile(path, []byte("first boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, guest := guestConsole(t, path)
	live, past := c.attach(false)
	if past != nil {
		t.Error("history without being asked for")
	}
	say(t, guest, "one\n")
	say(t, guest, "two\n")
	say(t, guest, "") // returns when what came before has been taken
	follower, past := c.attach(true)
	gone, _ := c.attach(true)
	c.detach(gone)
	say(t, guest, "three\n")
	_ = guest.Close()
	<-c.drained

	if got := readAll(t, c, live, nil); got != "one\ntwo\nthree\n" {
		t.Errorf("reader from the start: %q", got)
	}
	if got := readAll(t, c, follower, past); got != "first boot\none\ntwo\nthree\n" {
		t.Errorf("follower: %q", got)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "first boot\none\ntwo\nthree\n" {
		t.Errorf("log: %q, %v", b, err)
	}
	if len(gone.buf) > 0 {
		t.Error("a reader that has left still gets output")
	}
	if c.send([]byte("x")) == nil {
		t.Error("input to a guest that is gone was taken")
	}
}

func TestConsoleReaderThatStops(t *testing.T) {
	t.Parallel()
	c, _ := guestConsole(t, filepath.Join(t.TempDir(), "console.log"))
	r, _ := c.attach(false)
	stop := make(chan struct{})
	close(stop)
	if _, err := c.read(r, stop); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read = %v", err)
	}
}

func TestConsoleDropsForSlowReaders(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console.log")
	c, guest := guestConsole(t, path)
	slow, _ := c.attach(false)
	block := strings.Repeat("x", 1<<10-1) + "\n"
	for range 3 * maxBacklog / len(block) { // nobody reads, and the guest does not wait
		say(t, guest, block)
	}
	say(t, guest, "the end\n")
	_ = guest.Close()
	<-c.drained
	got := readAll(t, c, slow, nil)
	if !strings.Contains(got, "output dropped") || !strings.HasSuffix(got, "the end\n") || len(got) > 2*maxBacklog {
		t.Errorf("%d bytes, beginning with %.100q", len(got), got)
	}
	if info, err := os.Stat(path); err != nil || info.Size() < 3*maxBacklog-int64(len(block)) {
		t.Errorf("the log lacks something: %v, %v", info, err)
	}
}

func TestConsoleLogIsBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "console.log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxLog-10); err != nil {
		t.Fatal(err)
	}
	c, guest := guestConsole(t, path)
	say(t, guest, "0123456789")
	say(t, guest, "abc")
	_ = guest.Close()
	<-c.drained
	if b, err := os.ReadFile(path); err != nil || string(b) != "abc" {
		t.Errorf("after the rotation the log holds %.20q, %v", b, err)
	}
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() != maxLog {
		t.Errorf("the older log: %v, %v", info, err)
	}
}

func TestConsoleWithoutLog(t *testing.T) {
	t.Parallel()
	c, guest := guestConsole(t, filepath.Join(t.TempDir(), "no", "such", "dir", "console.log"))
	say(t, guest, "panic\n")
	_ = guest.Close()
	<-c.drained
	if got := c.tail(); !strings.Contains(got, "panic") || !strings.Contains(got, "console log") {
		t.Errorf("tail: %q", got)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"empty":      {"", ""},
		"lines":      {"a\r\nb\n\n", "a\nb"},
		"terminal":   {"\x1b[31mred\x1b[0m\a\x00", "[31mred[0m"},
		"C1 control": {"a\u009bb", "ab"},
		"not UTF-8":  {"a\xffb", "a?b"},
		"only last":  {strings.Repeat("early\n", 100) + strings.Repeat("late\n", tailLines), strings.TrimSpace(strings.Repeat("late\n", tailLines))},
		"long line":  {strings.Repeat("x", maxTail+5), strings.Repeat("x", maxTail)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			con := newConsole("")
			con.write([]byte(c.in))
			if got := con.tail(); got != c.want {
				t.Errorf("tail of %.50q = %.200q, want %.200q", c.in, got, c.want)
			}
		})
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("\x1b]0;title\a\xff\xc2\x9b\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := newConsole("")
		c.write(in)
		for _, r := range c.tail() {
			if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q let %q through", in, r)
			}
		}
	})
}
