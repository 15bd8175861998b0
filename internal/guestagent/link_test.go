package guestagent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hostexec"
)

// A guest restored from a snapshot holds a session that its host has forgotten: the next preamble starts over, whatever
// the old session was in the midst of.
func TestNewPreambleRestartsTheSession(t *testing.T) {
	t.Parallel()
	frame := append([]byte{0, 0, 0, 1, 0, 0, 0, 1}, 0, 0, 0x70, 0) // data, SYN, stream 1, 28 KiB
	cases := map[string][]byte{
		"idle":             nil,
		"in a header":      frame[:5],
		"before a payload": frame,
		"in a payload":     append(bytes.Clone(frame), make([]byte, 100)...),
		"garbage":          []byte("\xb5BANGER\n\x01 no preamble at all"),
		"a cut preamble":   guestproto.Preamble{TimeNS: 5}.Append(nil)[:32<<10+50],
		"just magic bytes": bytes.Repeat([]byte{0xb5}, 100_000),
	}
	for name, stale := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, guest := sockets(t)
			go New("hosted", hosted{}, newChildren()).Serve(t.Context(), guest) //nolint:errcheck // ends with the test
			first, _, err := guestlink.Open(t.Context(), keepOpen{host})
			if err != nil {
				t.Fatal(err)
			}
			// The old session has a command with output under way.
			p, err := guestlink.NewClient(first).Start(t.Context(), shell("exec cat /dev/zero"))
			if err != nil {
				t.Fatal(err)
			}
			_ = first.Close()
			_ = host.SetDeadline(time.Time{})
			if _, err := host.Write(stale); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			second, _, err := guestlink.Open(ctx, host)
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close() //nolint:errcheck // a test's end
			if err := guestlink.NewClient(second).Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = p.Close()
		})
	}
}

// keepOpen is a connection whose Close only makes it forget its user: the byte stream of a VM that goes on.
type keepOpen struct{ net.Conn }

func (k keepOpen) Close() error { return k.SetDeadline(time.Unix(1, 0)) }

// TestMain makes the test binary the agent's program when a test starts it as such.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main([]string{"banger-guest", "-hosted", "-link-fd", "3"}))
	}
	if strings.HasPrefix(os.Args[0], "@") { // the agent under test runs one of its own programs
		os.Exit(Main(os.Args))
	}
	os.Exit(m.Run())
}

const asProgram = "BANGER_TEST_AS_PROGRAM"

func TestHostedProgramShutsDown(t *testing.T) {
	t.Parallel()
	for how, want := range map[guestproto.Shutdown]int{guestproto.PowerOff: exitPowerOff, guestproto.Reboot: exitReboot} {
		host, guest := sockets(t)
		program, err := hostexec.Start(hostexec.Cmd{
			Path: os.Args[0], Env: append(os.Environ(), asProgram+"=1"), Files: []*os.File{guest}, Stderr: os.Stderr,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(program.Kill)
		_ = guest.Close()
		s, hello, err := guestlink.Open(t.Context(), host)
		if err != nil || hello.Pid != program.Pid() {
			t.Fatalf("Open = %+v, %v", hello, err)
		}
		c := guestlink.NewClient(s)
		if err := c.Shutdown(t.Context(), "explode", 0); !fault.Is(err, fault.Invalid) {
			t.Errorf("Shutdown(explode) = %v", err)
		}
		if err := c.Shutdown(t.Context(), how, 0); err != nil {
			t.Errorf("Shutdown(%s) = %v", how, err)
		}
		select {
		case <-program.Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the program goes on")
		}
		if err := program.Err(); (want == 0) != (err == nil) || want != 0 && hostexec.ExitCode(err) != want {
			t.Errorf("%s: %v, want status %d", how, err, want)
		}
		<-s.Done()
	}
}

func TestSimpleRequests(t *testing.T) {
	t.Parallel()
	c := connect(t)
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for name, id := range map[string]guestproto.Identity{
		"host name": {Hostname: "../x"}, "machine id": {MachineID: "x"}, "entropy": {Entropy: make([]byte, 513)}, "env": {Env: []string{"x"}},
	} {
		if err := c.Configure(t.Context(), id); !fault.Is(err, fault.Invalid) {
			t.Errorf("Configure with a bad %s = %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Ping(ctx); !fault.Is(err, fault.Canceled) {
		t.Errorf("Ping with an ended context = %v", err)
	}
}

type entry struct {
	typ           byte
	name, content string // or the link's target
	mode          int64
}

func archive(t *testing.T, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.typ, Name: e.name, Mode: e.mode, ModTime: time.Unix(1e9, 0)}
		if e.typ == tar.TypeReg {
			h.Size = int64(len(e.content))
		} else {
			h.Linkname = e.content
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.typ == tar.TypeReg {
			_, _ = io.WriteString(w, e.content)
		}
	}
	_ = w.Close()
	return &b
}

func TestPutAndGet(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := filepath.Join(t.TempDir(), "a", "tree")
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	in := archive(t,
		entry{tar.TypeDir, "locked/", "", 0o555}, entry{tar.TypeReg, "locked/file", "x", 0o4711},
		entry{tar.TypeReg, "deep/er/file", string(big), 0o600}, entry{tar.TypeLink, "hard", "deep/er/file", 0},
		entry{tar.TypeSymlink, "link", "/etc/passwd", 0o777}, entry{tar.TypeReg, strings.Repeat("n", 200), "", 0o644},
		entry{tar.TypeReg, "twice", "1", 0o644}, entry{tar.TypeReg, "twice", "2", 0o644},
		entry{tar.TypeReg, "link", "replaced, not followed", 0o644}, entry{tar.TypeSymlink, "dangling", "no/where", 0o777},
	)
	if err := c.Put(t.Context(), dir, in, guestlink.PutOptions{UID: os.Geteuid(), GID: os.Getegid()}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Get(t.Context(), dir, &out); err != nil {
		t.Fatal(err)
	}
	got := map[string]*tar.Header{}
	content := map[string]string{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r)
		got[h.Name], content[h.Name] = h, string(b)
	}
	if h := got["tree/locked/"]; h == nil || h.Mode != 0o555 || h.ModTime.Unix() != 1e9 {
		t.Errorf("locked: %+v", h)
	}
	if h := got["tree/locked/file"]; h == nil || h.Mode != 0o4711 || h.Uname != "" {
		t.Errorf("locked/file: %+v", h)
	}
	if content["tree/deep/er/file"] != string(big) || got["tree/hard"].Typeflag != tar.TypeLink || got["tree/hard"].Linkname != "tree/deep/er/file" {
		t.Errorf("hard link: %+v", got["tree/hard"])
	}
	if content["tree/twice"] != "2" || content["tree/link"] != "replaced, not followed" || got["tree/dangling"].Linkname != "no/where" {
		t.Errorf("contents: %q %q", content["tree/twice"], content["tree/link"])
	}
}

func TestPutStaysInItsDirectory(t *testing.T) {
	t.Parallel()
	c := connect(t)
	outside := t.TempDir()
	cases := map[string][]entry{
		"dots":            {{tar.TypeReg, "../evil", "x", 0o644}},
		"absolute":        {{tar.TypeReg, outside + "/evil", "x", 0o644}},
		"through a link":  {{tar.TypeSymlink, "l", outside, 0o777}, {tar.TypeReg, "l/evil", "x", 0o644}},
		"through dots":    {{tar.TypeSymlink, "l", "../..", 0o777}, {tar.TypeReg, "l/evil", "x", 0o644}},
		"hard link":       {{tar.TypeLink, "h", "../../etc/passwd", 0}},
		"link to link":    {{tar.TypeSymlink, "a", outside, 0o777}, {tar.TypeLink, "h", "a/secret", 0}},
		"directory":       {{tar.TypeSymlink, "l", outside, 0o777}, {tar.TypeDir, "l/evil/", "", 0o755}},
		"device":          {{tar.TypeBlock, "sda", "", 0o666}},
		"over a full dir": {{tar.TypeReg, "d/x", "x", 0o644}, {tar.TypeReg, "d", "x", 0o644}},
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, entries := range cases {
		dir := t.TempDir()
		if err := c.Put(t.Context(), dir, archive(t, entries...), guestlink.PutOptions{UID: os.Geteuid(), GID: os.Getegid()}); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("something got out: %v", left)
	}
	for name, dir := range map[string]string{"relative": "x", "a file": filepath.Join(outside, "secret")} {
		if err := c.Put(t.Context(), dir, archive(t), guestlink.PutOptions{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("Put into %s = %v (%v)", name, err, fault.KindOf(err))
		}
	}
	for name, bytes := range map[string]string{"garbage": strings.Repeat("x", 5000), "cut": archive(t, entry{tar.TypeReg, "a", strings.Repeat("x", 9000), 0o644}).String()[:3000]} {
		if err := c.Put(t.Context(), t.TempDir(), strings.NewReader(bytes), guestlink.PutOptions{UID: os.Geteuid(), GID: os.Getegid()}); !fault.Is(err, fault.Invalid) {
			t.Errorf("Put of %s = %v (%v)", name, err, fault.KindOf(err))
		}
	}
}

func TestGetRefuses(t *testing.T) {
	t.Parallel()
	c := connect(t)
	if err := c.Get(t.Context(), "/no/such", io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("Get of nothing = %v", err)
	}
	if err := c.Get(t.Context(), "etc", io.Discard); !fault.Is(err, fault.Invalid) {
		t.Errorf("Get of a relative path = %v", err)
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	c := connect(t)
	for _, network := range []string{"tcp", "unix"} {
		at := "127.0.0.1:0"
		if network == "unix" {
			at = filepath.Join(t.TempDir(), "s")
		}
		l, err := (&net.ListenConfig{}).Listen(t.Context(), network, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(conn) // to the half-close
			_, _ = conn.Write(bytes.ToUpper(all))
			_ = conn.Close()
		}()
		conn, err := c.Dial(t.Context(), network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); !os.IsTimeout(err) {
			t.Errorf("a read past its deadline = %v", err)
		}
		_ = conn.SetReadDeadline(time.Time{})
		sent := strings.Repeat("abc", 200_000)
		go func() {
			_, _ = io.WriteString(conn, sent)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != strings.ToUpper(sent) {
			t.Errorf("%s: %d bytes back, %v", network, len(got), err)
		}
		_ = conn.Close()
	}
	if _, err := c.Dial(t.Context(), "tcp", "127.0.0.1:1"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Dial to nobody = %v", err)
	}
	if _, err := c.Dial(t.Context(), "ip", "127.0.0.1"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Dial by ip = %v", err)
	}
	if _, err := c.Dial(t.Context(), "tcp", "127.0.0.1:notaport"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Dial to no port = %v", err)
	}
	if _, err := c.Dial(t.Context(), "unix", filepath.Join(t.TempDir(), "s")); !fault.Is(err, fault.NotFound) {
		t.Errorf("Dial to no socket = %v", err)
	}
}
