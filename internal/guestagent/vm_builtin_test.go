//go:build vm

package guestagent

import (
	"context"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/guestproto"
)

// checkBuiltins runs the programs of the agent in a real guest, where its file is on no file system any more, and has it listen.
func checkBuiltins(t *testing.T, g *guest) {
	t.Helper()
	for user, want := range map[string]string{"": "0 /root\n600", "daemon": "1 /usr/sbin\n600"} {
		t.Run("sftp as "+user, func(t *testing.T) { // whose end ends the server
			begin := time.Now()
			c := startSFTP(t, g.client, guestproto.HomeDir, user)
			wd, err := c.Getwd()
			t.Logf("answers after %d ms (%v)", time.Since(begin).Milliseconds(), err)
			path := "/tmp/sftp-" + user
			f, err := c.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = f.Write([]byte("x"))
			_ = f.Close()
			if err := c.Chmod(path, 0o600); err != nil {
				t.Error(err)
			}
			if got := g.sh(t, "stat -c %u "+path) + " " + wd + "\n" + g.sh(t, "stat -c %a "+path); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
	spec := guestproto.ExecSpec{Args: []string{guestproto.ProgramSCP, "-t", "/tmp"}, Dir: guestproto.HomeDir, User: "daemon", Stdin: true}
	if out, exit := run(t, g.client, spec, "C0640 2 by-scp\nhi\x00"); exit.Code != 0 {
		t.Errorf("scp: %q, %+v", out, exit)
	}
	if got := g.sh(t, "stat -c '%u %a %s' /tmp/by-scp"); got != "1 640 2" {
		t.Errorf("scp made %q", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ln, err := g.client.Listen(ctx, guestproto.ListenSpec{Network: "unix", User: "daemon"})
	if err != nil {
		t.Fatal(err)
	}
	if got := g.sh(t, "stat -c '%u %a' "+ln.Addr()+" $(dirname "+ln.Addr()+")"); got != "1 600\n1 700" {
		t.Errorf("the socket and its directory: %q", got)
	}
	cancel()
	g.sh(t, "for i in $(seq 600); do test -e $(dirname "+ln.Addr()+") || exit 0; sleep 0.1; done; exit 1")

	tcp, err := g.client.Listen(t.Context(), guestproto.ListenSpec{Network: "tcp", Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	go func() {
		a, err := tcp.Accept()
		if err != nil {
			return
		}
		conn, err := g.client.Dial(t.Context(), guestproto.NetworkAccepted, strconv.FormatUint(a.Number, 10))
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "from the host\n")
		_ = conn.Close()
	}()
	_, port, _ := strings.Cut(tcp.Addr(), ":")
	out, _ := run(t, g.client, guestproto.ExecSpec{Args: []string{"bash", "-c", "exec cat </dev/tcp/127.0.0.1/" + port}}, "")
	if out != "from the host\n" {
		t.Errorf("over %s: %q", tcp.Addr(), out)
	}
}
