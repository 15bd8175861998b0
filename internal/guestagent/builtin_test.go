package guestagent

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hostexec"
)

// startSFTP starts the agent's SFTP server and returns a client of it.
func startSFTP(t *testing.T, c *guestlink.Client, dir, user string) *sftp.Client {
	t.Helper()
	spec := guestproto.ExecSpec{Args: []string{guestproto.ProgramSFTP}, Dir: dir, User: user, Stdin: true}
	p, err := c.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			e, err := p.Recv()
			switch {
			case err != nil:
				_ = w.CloseWithError(err)
				return
			case e.Kind == guestproto.EventStdout:
				_, _ = w.Write(e.Data)
			case e.Kind == guestproto.EventExit:
				if e.Exit.Code != 0 {
					t.Errorf("the server ended with %+v", e.Exit)
				}
				_ = w.Close()
				return
			}
		}
	}()
	client, err := sftp.NewClientPipe(r, stdin{p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		<-ended
	})
	return client
}

// stdin is a process's standard input, closed on its own.
type stdin struct{ *guestlink.Process }

func (s stdin) Close() error { return s.CloseStdin() }

func TestSFTPServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := startSFTP(t, connect(t), dir, "")
	if wd, err := c.Getwd(); err != nil || wd != dir {
		t.Errorf("Getwd = %q, %v; want %q", wd, err, dir)
	}
	content := strings.Repeat("0123456789", 200_000)
	f, err := c.Create("big") // relative to the directory
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadFrom(strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if b, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || string(b) != content {
		t.Errorf("written: %d bytes, %v", len(b), err)
	}
	var back bytes.Buffer
	if f, err = c.Open("big"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteTo(&back); err != nil || back.String() != content {
		t.Errorf("read: %d bytes, %v", back.Len(), err)
	}
	_ = f.Close()
	for what, err := range map[string]error{
		"mkdir": c.MkdirAll("a/b"), "chmod": c.Chmod("big", 0o600), "symlink": c.Symlink("../big", "a/link"), "rename": c.PosixRename("big", "a/b/big"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "a/link")); err != nil || to != "../big" {
		t.Errorf("the link points to %q, %v", to, err)
	}
	if entries, err := c.ReadDir("a"); err != nil || len(entries) != 2 {
		t.Errorf("ReadDir = %v, %v", entries, err)
	}
	if _, err := c.Stat("none"); !os.IsNotExist(err) {
		t.Errorf("Stat of nothing = %v", err)
	}
}

// The built-in programs run as the user of the command, with that user's rights and no others.
func TestBuiltinsRunAsTheUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can become others")
	}
	c := startSFTP(t, connect(t), "/", "nobody")
	path := filepath.Join("/tmp", "banger-test-"+filepath.Base(t.TempDir())+strings.ReplaceAll(t.Name(), "/", "-"))
	defer os.Remove(path) //nolint:errcheck // it may not be there
	f, err := c.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	info, err := c.Stat(path)
	if err != nil || info.Sys().(*sftp.FileStat).UID != 65534 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := c.Open("/etc/shadow"); !os.IsPermission(err) {
		t.Errorf("reading what is root's: %v", err)
	}
}

func TestBuiltinNames(t *testing.T) {
	t.Parallel()
	c := connect(t)
	dir := t.TempDir()
	for _, name := range []string{"@nothing", "@", "@sftp-serverx"} {
		_, err := c.Start(t.Context(), guestproto.ExecSpec{Args: []string{name}, Dir: dir, Env: []string{"PATH=" + dir}})
		if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "by its path") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "@mine"), []byte("#!/bin/sh\necho mine\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, exit := run(t, c, guestproto.ExecSpec{Args: []string{"./@mine"}, Dir: dir}, ""); out != "mine\n" || exit.Code != 0 {
		t.Errorf("by its path: %q, %+v", out, exit)
	}
	out, exit := run(t, c, guestproto.ExecSpec{Args: []string{guestproto.ProgramSCP, "-t", "f"}, Dir: dir, Stdin: true}, "C0644 2 x\nhi\x00")
	if b, err := os.ReadFile(filepath.Join(dir, "f")); string(b) != "hi" || exit.Code != 0 {
		t.Errorf("scp: %q, %v; answered %q, %+v", b, err, out, exit)
	}
}

// TestOpenSSHClient has OpenSSH's sftp talk to the server.
func TestOpenSSHClient(t *testing.T) {
	t.Parallel()
	if _, err := hostexec.Look("sftp", "openssh-client"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	server, batch := filepath.Join(dir, guestproto.ProgramSFTP), filepath.Join(dir, "batch") // argv[0] is the path that was run
	script := "#!/bin/bash\nexec -a " + guestproto.ProgramSFTP + " " + os.Args[0] + "\n"
	if err := os.WriteFile(server, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("0123456789", 100_000)
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	commands := "put -p " + dir + "/in " + dir + "/there\nmkdir " + dir + "/d\nrename " + dir + "/there " + dir + "/d/x\nget -p " + dir + "/d/x " + dir + "/out\ndf " + dir + "\n"
	if err := os.WriteFile(batch, []byte(commands), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := hostexec.Run(t.Context(), hostexec.Cmd{Path: "sftp", Args: []string{"-q", "-b", batch, "-D", server}}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "out"))
	info, _ := os.Stat(filepath.Join(dir, "out"))
	if err != nil || string(b) != content || info.Mode() != 0o640 {
		t.Errorf("%d bytes came back, %v, %v", len(b), info, err)
	}
}

// TestOpenSSHCopies copies a tree in both directions with OpenSSH's scp at the near end.
func TestOpenSSHCopies(t *testing.T) {
	t.Parallel()
	if _, err := hostexec.Look("scp", "openssh-client"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "ssh") // is called like ssh, with the remote command as the last word
	script := "#!/bin/bash\nfor last; do :; done\neval \"set -- $last\"\nshift\nexec -a " + guestproto.ProgramSCP + " " + os.Args[0] + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	src, when := filepath.Join(dir, "src"), time.Unix(1e9, 0)
	if err := os.MkdirAll(filepath.Join(src, "deep", "er"), 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"empty": "", "with space": "x", "deep/er/big": strings.Repeat("0123456789", 300_000), "deep/-dash": "y"}
	for name, content := range files {
		path := filepath.Join(src, name)
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(src, "deep"), 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, d := range []string{"src/deep", "in/deep", "out/deep"} {
			_ = os.Chmod(filepath.Join(dir, d), 0o700)
		}
	})
	for _, c := range [][2]string{{src, "vm:" + dir + "/in"}, {"vm:" + dir + "/in", dir + "/out"}} {
		err := hostexec.Run(t.Context(), hostexec.Cmd{Path: "scp", Args: []string{"-O", "-q", "-r", "-p", "-S", program, c[0], c[1]}})
		if err != nil {
			t.Fatalf("scp %v: %v", c, err)
		}
		_ = os.Chtimes(filepath.Join(dir, "in", "empty"), when, time.Unix(-5, 0)) // on the way back: the protocol has no such time
	}
	for name, content := range files {
		path := filepath.Join(dir, "out", name)
		b, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || string(b) != content || info.Mode() != 0o640 || name != "empty" && !info.ModTime().Equal(when) {
			t.Errorf("%s: %d bytes, %v, %v", name, len(b), info, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "in", "deep")); err != nil || info.Mode().Perm() != 0o500 {
		t.Errorf("deep: %v, %v", info, err)
	}
	err := hostexec.Run(t.Context(), hostexec.Cmd{Path: "scp", Args: []string{"-O", "-q", "-S", program, "vm:" + dir + "/none", dir + "/x"}})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing file: %v", err)
	}
}
