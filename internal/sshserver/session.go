package sshserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/crypto/ssh"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// Limits of what a client may put into a session before its command starts.
const (
	maxVariables = 1024
	maxVariable  = 128 << 10 // bytes of a name and its value; execve(2) takes no longer string
)

// session is one "session" channel: at most one command, and what is said about it before and while it runs.
type session struct {
	server  *server
	ctx     context.Context //nolint:containedctx // the session's life, which ends with its channel
	channel ssh.Channel
	user    string

	env     []string
	tty     bool
	term    string
	size    Size
	agent   bool // forward the client's authentication agent
	started bool

	signals chan syscall.Signal
	sizes   chan Size
}

func (s *server) session(ctx context.Context, ch ssh.NewChannel) {
	channel, requests, err := ch.Accept()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	n := &session{
		server: s, ctx: ctx, channel: channel, user: s.conn.User(),
		signals: make(chan syscall.Signal, 16), sizes: make(chan Size, 1),
	}
	for r := range requests { // until the channel is closed, by the client or at the command's end
		ok := n.request(r)
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if ok && n.started && isStart(r.Type) {
			args := n.command(r)
			s.tasks.Go(func() { n.run(args) })
		}
	}
	cancel(errGone)
	_ = channel.Close()
}

func isStart(kind string) bool { return kind == "shell" || kind == "exec" || kind == "subsystem" }

// request takes one request and reports whether it is granted. It never waits for the command: while it does, nothing else
// would move on the connection.
func (n *session) request(r *ssh.Request) bool {
	switch r.Type {
	case "env":
		return n.setenv(r.Payload)
	case "pty-req":
		var pty struct {
			Term          string
			Cols, Rows    uint32
			Width, Height uint32
			Modes         string // of the client's terminal: the guest's has its own
		}
		if ssh.Unmarshal(r.Payload, &pty) != nil || n.started {
			return false
		}
		n.tty, n.term, n.size = true, pty.Term, Size{pty.Rows, pty.Cols}
		return true
	case "window-change":
		var change struct{ Cols, Rows, Width, Height uint32 }
		if ssh.Unmarshal(r.Payload, &change) != nil {
			return false
		}
		select { // the last one counts
		case <-n.sizes:
		default:
		}
		n.sizes <- Size{change.Rows, change.Cols}
		return true
	case "signal":
		var name struct{ Name string }
		if ssh.Unmarshal(r.Payload, &name) != nil {
			return false
		}
		sig, ok := signalNumber(name.Name)
		if ok {
			select {
			case n.signals <- sig:
			default: // the guest takes none
				return false
			}
		}
		return ok
	case "auth-agent-req@openssh.com":
		n.agent = true
		return true
	case "shell", "exec", "subsystem":
		if n.started || !n.wellFormed(r) {
			return false
		}
		n.started = true
		return true
	default: // keepalives among them: any answer will do
		return false
	}
}

func (n *session) setenv(payload []byte) bool {
	var v struct{ Name, Value string }
	if ssh.Unmarshal(payload, &v) != nil || n.started || len(n.env) >= maxVariables || len(v.Name)+len(v.Value) > maxVariable {
		return false
	}
	if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.Contains(v.Value, "\x00") {
		return false
	}
	n.env = append(n.env, v.Name+"="+v.Value)
	return true
}

func (n *session) wellFormed(r *ssh.Request) bool {
	var text struct{ Text string }
	switch r.Type {
	case "exec":
		return ssh.Unmarshal(r.Payload, &text) == nil
	case "subsystem":
		return ssh.Unmarshal(r.Payload, &text) == nil && text.Text == "sftp"
	default:
		return true
	}
}

// command is what a request to start something means; the request is well-formed.
func (n *session) command(r *ssh.Request) Command {
	c := Command{Env: slices.Clone(n.env), User: n.user, TTY: n.tty, Size: n.size, Term: n.term}
	var text struct{ Text string }
	switch r.Type {
	case "subsystem":
		c.Args, c.Dir, c.TTY = []string{guestproto.ProgramSFTP}, "~", false
	case "exec":
		_ = ssh.Unmarshal(r.Payload, &text)
		c.Args = []string{guestproto.ProgramShell, "-c", text.Text}
		words, err := splitWords(text.Text)
		if err == nil && isTransfer(words) {
			c.Dir = "~" // as everywhere: paths that these programs are given are relative to the home
			if words[0] == "scp" {
				c.Args = append([]string{guestproto.ProgramSCP}, words[1:]...)
			}
		}
	}
	return c
}

// isTransfer reports whether a command line is the far end of a program that copies.
func isTransfer(words []string) bool {
	if len(words) < 2 {
		return false
	}
	switch words[0] {
	case "rsync":
		return words[1] == "--server"
	case "git-upload-pack", "git-receive-pack", "git-upload-archive":
		return true
	case "scp":
		for _, w := range words[1:] {
			if len(w) < 2 || w[0] != '-' || w == "--" {
				break
			}
			if strings.ContainsAny(w[1:], "tf") {
				return true
			}
		}
	}
	return false
}

// run runs the session's command and closes the channel.
func (n *session) run(c Command) {
	defer n.channel.Close() //nolint:errcheck // the client's end may have closed it
	if n.agent {
		if path, err := n.forwardAgent(); err != nil {
			n.say("forward the authentication agent: %v", err)
		} else {
			c.Env = append(c.Env, "SSH_AUTH_SOCK="+path)
		}
	}
	var started atomic.Bool
	streams := Streams{
		Stdin: n.channel, Stdout: n.channel, Stderr: n.channel.Stderr(),
		Signals: n.signals, Sizes: n.sizes, Started: func() { started.Store(true) },
	}
	exit, err := n.server.guest.Exec(n.ctx, c, streams)
	if fault.Is(err, fault.NotFound) && !started.Load() && len(c.Args) == 3 && c.Args[0] == guestproto.ProgramShell {
		exit, err = n.withoutShell(c, streams, err)
	}
	if n.ctx.Err() != nil {
		return
	}
	if err != nil {
		n.say("%v", err)
		exit = Exit{Code: exitStatus(err, started.Load())}
	}
	_ = n.channel.CloseWrite()
	n.tell(exit)
}

// withoutShell runs a command line in an image that has no shell: what is but words needs none.
func (n *session) withoutShell(c Command, streams Streams, why error) (Exit, error) {
	words, err := splitWords(c.Args[2])
	switch {
	case errors.Is(err, errNeedsShell):
		return Exit{}, fault.New(fault.NotFound, "%w, and the command needs one", why)
	case err != nil:
		return Exit{}, err
	case len(words) == 0:
		return Exit{}, nil
	}
	c.Args = words
	return n.server.guest.Exec(n.ctx, c, streams)
}

// say tells the user something on the command's standard error.
func (n *session) say(format string, args ...any) {
	text := fmt.Sprintf("banger: "+format, args...)
	end := "\n"
	if n.tty {
		end = "\r\n"
	}
	_, _ = n.channel.Stderr().Write([]byte(text + end))
}

// tell sends how the command ended (RFC 4254, 6.10).
func (n *session) tell(exit Exit) {
	if name, ok := signalName(exit.Signal); ok {
		_, _ = n.channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name    string
			Core    bool
			Message string
			Lang    string
		}{Name: name}))
		return
	}
	code := exit.Code
	if code < 0 || code > 255 { // no process ends so, but a guest can say anything
		code = 255
	}
	_, _ = n.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(code)}))
}

// forwardAgent makes a socket in the guest that leads to the client's authentication agent, for as long as the session.
func (n *session) forwardAgent() (path string, err error) {
	ln, err := n.server.guest.Listen(n.ctx, "unix", "", n.user)
	if err != nil {
		return "", err
	}
	n.server.tasks.Go(func() {
		n.server.accept(n.ctx, ln, func(net.Conn) (string, []byte) { return "auth-agent@openssh.com", nil })
	})
	return ln.Addr().String(), nil
}

// signals are the names of RFC 4254, 6.10, and what OpenSSH adds.
func signals() map[string]syscall.Signal {
	return map[string]syscall.Signal{
		"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL,
		"INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV,
		"TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
		"STOP": syscall.SIGSTOP, "TSTP": syscall.SIGTSTP, "CONT": syscall.SIGCONT, "WINCH": syscall.SIGWINCH,
		"BUS": syscall.SIGBUS, "SYS": syscall.SIGSYS, "XCPU": syscall.SIGXCPU, "XFSZ": syscall.SIGXFSZ, "TRAP": syscall.SIGTRAP,
	}
}

func signalNumber(name string) (syscall.Signal, bool) {
	n, ok := signals()[name]
	return n, ok
}

// signalName is the name for an exit-signal. A signal that has none is told by a number, as names of one's own end in
// "@domain".
func signalName(n int) (string, bool) {
	if n == 0 {
		return "", false
	}
	for name, sig := range signals() {
		if int(sig) == n {
			return name, true
		}
	}
	return strconv.Itoa(n) + "@banger", true
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
