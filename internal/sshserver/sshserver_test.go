package sshserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// patience bounds what is waited for; a busy machine needs some.
const patience = time.Minute

// fakeGuest is this machine: commands are processes, connections are made here.
type fakeGuest struct {
	noShell bool
	mu      sync.Mutex
	ran     []Command
	sizes   chan Size
	dir     string
}

func (g *fakeGuest) last() Command {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ran[len(g.ran)-1]
}

func (g *fakeGuest) Exec(ctx context.Context, c Command, s Streams) (Exit, error) {
	g.mu.Lock()
	g.ran = append(g.ran, c)
	g.mu.Unlock()
	args := c.Args
	switch {
	case len(args) == 0:
		args = []string{"sh"}
	case args[0] == guestproto.ProgramShell && g.noShell:
		return Exit{}, fault.New(fault.NotFound, "it has no shell")
	case args[0] == guestproto.ProgramShell:
		args = append([]string{"sh"}, args[1:]...)
	case args[0] == "broken":
		return Exit{}, fault.New(fault.Unavailable, "the link broke")
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return Exit{}, fault.New(fault.NotFound, "%s: command not found", args[0])
	}
	in, inside := io.Pipe()
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(os.Environ(), c.Env...), in, s.Stdout, s.Stderr
	if err := cmd.Start(); err != nil {
		return Exit{}, err
	}
	s.Started()
	go func() {
		_, err := io.Copy(inside, s.Stdin)
		_ = inside.CloseWithError(err)
	}()
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case sig := <-s.Signals:
				_ = cmd.Process.Signal(sig)
			case size := <-s.Sizes:
				g.sizes <- size
			case <-done:
				return
			}
		}
	}()
	// The input outlasts a process that does not read it.
	state, err := cmd.Process.Wait()
	_ = in.Close()
	_ = cmd.Wait()
	if err != nil {
		return Exit{}, err
	}
	if ctx.Err() != nil {
		return Exit{}, ctx.Err()
	}
	status, _ := state.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return Exit{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}, nil
	}
	return Exit{Code: status.ExitStatus()}, nil
}

func (g *fakeGuest) Dial(ctx context.Context, network, address string) (Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	half, ok := conn.(Conn)
	if !ok {
		return nil, errors.New("no half-close")
	}
	return half, nil
}

func (g *fakeGuest) Listen(ctx context.Context, network, address, _ string) (net.Listener, error) {
	if address == "" {
		address = filepath.Join(g.dir, "agent")
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, network, address)
}

// bed is a server, and a client that is connected to it.
type bed struct {
	guest  *fakeGuest
	keys   *Keys
	client *ssh.Client
	served chan error
}

func newBed(t *testing.T, guest *fakeGuest) *bed {
	t.Helper()
	guest.dir, guest.sizes = t.TempDir(), make(chan Size, 16)
	keys, err := OpenKeys(filepath.Join(t.TempDir(), "ssh"), "*.vm")
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{guest: guest, keys: keys, served: make(chan error, 1)}
	here, there := pair(t)
	go func() { b.served <- Serve(t.Context(), there, keys, guest) }()
	conn, channels, requests, err := ssh.NewClientConn(here, "box.vm:22", b.config(t, keys.Identity()))
	if err != nil {
		t.Fatal(err)
	}
	b.client = ssh.NewClient(conn, channels, requests)
	t.Cleanup(func() {
		_ = b.client.Close()
		select {
		case err := <-b.served:
			if err != nil {
				t.Errorf("the server ends with %v", err)
			}
		case <-time.After(patience):
			t.Error("the server outlives its client")
		}
	})
	return b
}

func (b *bed) config(t *testing.T, identity string) *ssh.ClientConfig {
	t.Helper()
	text, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(b.keys.Host.PublicKey()),
	}
}

func (b *bed) session(t *testing.T) *ssh.Session {
	t.Helper()
	s, err := b.client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestExec(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	s := b.session(t)
	var out, stderr bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = strings.NewReader("input"), &out, &stderr
	if err := s.Setenv("GREETING", "hello there"); err != nil {
		t.Error(err)
	}
	err := s.Run(`echo "$GREETING"; cat; echo bad >&2; exit 7`)
	var exit *ssh.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("ends with %v, want 7", err)
	}
	if out.String() != "hello there\ninput" || stderr.String() != "bad\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), stderr.String())
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		line   string
		status int
		signal string
	}{
		"well":      {"true", 0, ""},
		"badly":     {"exit 255", 255, ""},
		"by signal": {"kill -TERM $$", 0, "TERM"},
		"nameless":  {"kill -16 $$", 0, "16@banger"},
		"not there": {"no-such-command-here", 127, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := newBed(t, &fakeGuest{}).session(t).Run(test.line)
			var exit *ssh.ExitError
			switch {
			case err == nil && test.status == 0 && test.signal == "":
			case !errors.As(err, &exit):
				t.Errorf("ends with %v", err)
			case exit.Signal() != test.signal, test.signal == "" && exit.ExitStatus() != test.status:
				t.Errorf("status %d, signal %q", exit.ExitStatus(), exit.Signal())
			}
		})
	}
}

// What a command says last arrives, and more than any buffer holds.
func TestLargeStreams(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	s := b.session(t)
	const size = 16 << 20
	in := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	var out bytes.Buffer
	s.Stdin, s.Stdout = bytes.NewReader(in), &out
	if err := s.Run("cat"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), in) {
		t.Errorf("%d bytes came back of %d", out.Len(), size)
	}
}

func TestImageWithoutShell(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{noShell: true})
	out, err := b.session(t).Output(`printf '%s-' "a b" c\ d`)
	if err != nil || string(out) != "a b-c d-" {
		t.Errorf("%q, %v", out, err)
	}
	for line, status := range map[string]int{"echo $HOME": 127, "no-such-command-here": 127, "echo 'open": 255} {
		var exit *ssh.ExitError
		if err := b.session(t).Run(line); !errors.As(err, &exit) || exit.ExitStatus() != status {
			t.Errorf("%s: %v, want %d", line, err, status)
		}
	}
}

func TestSignalsAndTerminal(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	s := b.session(t)
	if err := s.RequestPty("vt100", 40, 100, ssh.TerminalModes{ssh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`trap 'exit 3' USR1; echo up; while :; do sleep 0.05; done`); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if c := b.guest.last(); !c.TTY || c.Term != "vt100" || c.Size != (Size{Rows: 40, Cols: 100}) {
		t.Errorf("the command is %+v", c)
	}
	if err := s.WindowChange(50, 120); err != nil {
		t.Fatal(err)
	}
	select {
	case size := <-b.guest.sizes:
		if size != (Size{Rows: 50, Cols: 120}) {
			t.Errorf("resized to %+v", size)
		}
	case <-time.After(patience):
		t.Error("no resize arrived")
	}
	if err := s.Signal(ssh.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	var exit *ssh.ExitError
	if err := s.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 3 {
		t.Errorf("ends with %v, want 3", err)
	}
}

// What is a copy's far end starts in the home and needs nothing of the image.
func TestCommands(t *testing.T) {
	t.Parallel()
	shell := func(line string) []string { return []string{guestproto.ProgramShell, "-c", line} }
	for line, want := range map[string]Command{
		"scp -r -t 'a b'":             {Args: []string{guestproto.ProgramSCP, "-r", "-t", "a b"}, Dir: "~"},
		"scp -pf /etc/passwd":         {Args: []string{guestproto.ProgramSCP, "-pf", "/etc/passwd"}, Dir: "~"},
		"scp a b":                     {Args: shell("scp a b")},
		"rsync --server . x":          {Args: shell("rsync --server . x"), Dir: "~"},
		"rsync a b":                   {Args: shell("rsync a b")},
		"git-upload-pack 'repo'":      {Args: shell("git-upload-pack 'repo'"), Dir: "~"},
		"make test":                   {Args: shell("make test")},
		"git-upload-pack x; rm -rf /": {Args: shell("git-upload-pack x; rm -rf /")},
	} {
		n := &session{user: "me"}
		got := n.command(&ssh.Request{Type: "exec", Payload: ssh.Marshal(struct{ Line string }{line})})
		if strings.Join(got.Args, "|") != strings.Join(want.Args, "|") || got.Dir != want.Dir || got.User != "me" {
			t.Errorf("%s: %+v", line, got)
		}
	}
	n := &session{tty: true}
	if got := n.command(&ssh.Request{Type: "subsystem"}); got.Args[0] != guestproto.ProgramSFTP || got.Dir != "~" || got.TTY {
		t.Errorf("sftp: %+v", got)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	s := b.session(t)
	for name, value := range map[string]string{"": "x", "A=B": "x", "A": "x\x00y", "LONG": strings.Repeat("x", maxVariable)} {
		if s.Setenv(name, value) == nil {
			t.Errorf("took the variable %q", name)
		}
	}
	if s.RequestSubsystem("netconf") == nil {
		t.Error("took an unknown subsystem")
	}
	if ok, _ := s.SendRequest("x11-req", true, nil); ok {
		t.Error("took x11-req")
	}
	if ok, _ := s.SendRequest("exec", true, []byte("malformed")); ok {
		t.Error("took a malformed exec")
	}
	if _, _, err := b.client.OpenChannel("x11", nil); err == nil {
		t.Error("took an unknown channel")
	}
	if _, _, err := b.client.OpenChannel("direct-tcpip", []byte("x")); err == nil {
		t.Error("took a malformed forward")
	}
	if _, _, err := b.client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		t.Errorf("keepalive: %v", err)
	}
	if err := s.Run("true"); err != nil {
		t.Errorf("after all that: %v", err)
	}
	if ok, _ := s.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{"true"})); ok {
		t.Error("took a second command")
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	other, err := OpenKeys(t.TempDir(), "*.vm")
	if err != nil {
		t.Fatal(err)
	}
	none := b.config(t, b.keys.Identity())
	none.Auth = nil
	for name, config := range map[string]*ssh.ClientConfig{"another": b.config(t, other.Identity()), "none": none} {
		here, there := pair(t)
		served := make(chan error, 1)
		go func() { served <- Serve(t.Context(), there, b.keys, b.guest) }()
		if _, _, _, err := ssh.NewClientConn(here, "box.vm:22", config); err == nil {
			t.Errorf("%s key is let in", name)
		}
		_ = here.Close()
		if err := <-served; err == nil {
			t.Errorf("%s key: the server is content", name)
		}
	}
}

// TestForwards sends and ends both ways, through a forward each way.
func TestForwards(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	var lc net.ListenConfig
	socket := filepath.Join(t.TempDir(), "s")
	for _, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", socket}} {
		ln, err := lc.Listen(t.Context(), at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() //nolint:errcheck,revive // of two
		go echo(ln)
		conn, err := b.client.Dial(at[0], ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		talk(t, conn)
	}
	if _, err := b.client.Dial("unix", socket+".none"); err == nil {
		t.Error("connected to nothing")
	}
	ln, err := b.client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go echo(ln)
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	talk(t, conn)
	if err := ln.Close(); err != nil {
		t.Errorf("cancel the forward: %v", err)
	}
	until(t, "the cancelled forward's port is closed", func() bool {
		conn, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	remote := filepath.Join(t.TempDir(), "r")
	unix, err := b.client.ListenUnix(remote)
	if err != nil {
		t.Fatal(err)
	}
	go echo(unix)
	if conn, err = d.DialContext(t.Context(), "unix", remote); err != nil {
		t.Fatal(err)
	}
	talk(t, conn)
}

func TestAgent(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	channels := b.client.HandleChannelOpen("auth-agent@openssh.com")
	go func() {
		for ch := range channels {
			channel, requests, err := ch.Accept()
			if err != nil {
				return
			}
			go ssh.DiscardRequests(requests)
			_, _ = io.Copy(channel, channel)
			_ = channel.Close()
		}
	}()
	s := b.session(t)
	if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); !ok || err != nil {
		t.Fatal("refused", err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(`echo "$SSH_AUTH_SOCK"; cat`); err != nil {
		t.Fatal(err)
	}
	path := make([]byte, len(b.guest.dir)+len("/agent"))
	if _, err := io.ReadFull(out, path); err != nil {
		t.Fatal(err)
	}
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "unix", string(path))
	if err != nil {
		t.Fatal(err)
	}
	talk(t, conn)
	_ = in.Close()
	_ = s.Wait()
	until(t, "the agent's socket is gone with its session", func() bool {
		_, err := os.Stat(string(path))
		return err != nil
	})
}

// A client that goes away takes its commands with it.
func TestClientGone(t *testing.T) {
	t.Parallel()
	b := newBed(t, &fakeGuest{})
	s := b.session(t)
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("echo up; exec sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	_ = b.client.Close() // newBed waits for the server
}

func echo(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		text, _ := io.ReadAll(conn) // to the end: the half-close must arrive
		_, _ = conn.Write(bytes.ToUpper(text))
		_ = conn.Close()
	}
}

// talk has what it says echoed, which takes a half-close in each direction. Agents echo lower case.
func talk(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close() //nolint:errcheck // a test
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		t.Fatalf("%T has no half-close", conn)
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); err != nil || !strings.EqualFold(string(text), "hello") {
		t.Errorf("echo %q, %v", text, err)
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// pair returns the two ends of a connection that holds some bytes.
func pair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}
