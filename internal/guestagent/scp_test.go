package guestagent

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"
)

// scpCopy has one end send paths and the other receive them.
func scpCopy(t *testing.T, options, target string, paths ...string) (source, sink int, said string) {
	t.Helper()
	toSink, fromSource := io.Pipe()
	toSource, fromSink := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- scpMain(append([]string{"-f" + options}, paths...), toSource, fromSource, io.Discard)
		_ = fromSource.Close()
		_ = toSource.Close()
	}()
	sink = scpMain([]string{"-t" + options, target}, toSink, fromSink, &stderr)
	_ = fromSink.Close()
	_ = toSink.Close()
	return <-done, sink, stderr.String()
}

func TestSCPTree(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(from, "tree/sub dir/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	when := time.Unix(1_000_000_000, 0)
	for name, text := range map[string]string{"tree/a": "", "tree/sub dir/b": strings.Repeat("x", 100_000), "tree/run": "#!"} {
		path := filepath.Join(from, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(from, "tree/run"), 0o755); err != nil { //nolint:gosec // to see it kept
		t.Fatal(err)
	}
	if a, b, said := scpCopy(t, "rp", to, filepath.Join(from, "t*")); a != 0 || b != 0 {
		t.Fatalf("%d, %d, %s", a, b, said)
	}
	b, err := os.ReadFile(filepath.Join(to, "tree/sub dir/b"))
	if err != nil || len(b) != 100_000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	info, err := os.Stat(filepath.Join(to, "tree/run"))
	if err != nil || info.Mode().Perm() != 0o755 || !info.ModTime().Equal(when) {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(to, "tree/sub dir/empty")); err != nil {
		t.Error(err)
	}
	// To a name of its own.
	if a, b, said := scpCopy(t, "", filepath.Join(to, "named"), filepath.Join(from, "tree/run")); a != 0 || b != 0 {
		t.Errorf("%d, %d, %s", a, b, said)
	}
	if text, err := os.ReadFile(filepath.Join(to, "named")); err != nil || string(text) != "#!" {
		t.Errorf("%q, %v", text, err)
	}
}

// What can't be copied is told, and the rest is there.
func TestSCPWarns(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "good"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, _, _ := scpCopy(t, "", to, filepath.Join(from, "missing"), from, filepath.Join(from, "good"))
	if a != 1 {
		t.Errorf("the source says %d", a)
	}
	if text, err := os.ReadFile(filepath.Join(to, "good")); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	if _, b, _ := scpCopy(t, "d", filepath.Join(to, "no-directory"), filepath.Join(from, "good")); b != 1 {
		t.Errorf("-d to no directory: %d", b)
	}
}

func TestSCPOptions(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"-t"}, {"-f"}, {"-t", "-f", "x"}, {"-t", "a", "b"}, {"-x", "-t", "a"}, {"a"}} {
		if status := scpMain(args, strings.NewReader(""), io.Discard, io.Discard); status != 2 {
			t.Errorf("%q: %d", args, status)
		}
	}
}

// A directory gets its mode, and what fails of it is told, before its end is acknowledged: later the other end would take a complaint
// for one of what comes next. A pipe that nobody reads from is no place to wait at.
func TestSCPSinkAnswers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	in := "C0600 1 pipe\nD0500 0 d\nC0600 1 x\na\x00E\nT1 0 1 0\nD0755 0 gone\nE\nC0600 0 y\n\x00"
	r := &removing{Reader: strings.NewReader(in), path: filepath.Join(dir, "gone")}
	if status := scpMain([]string{"-r", "-t", dir}, r, &said, io.Discard); status != 1 {
		t.Errorf("status %d", status)
	}
	if got := said.String(); strings.Count(got, "\x01") != 2 || !strings.HasPrefix(got, "\x00\x01") || !strings.HasSuffix(got, "\n\x00\x00") {
		t.Errorf("answered %q", got)
	}
	if info, err := os.Stat(filepath.Join(dir, "d")); err != nil || info.Mode().Perm() != 0o500 {
		t.Errorf("%v, %v", info, err)
	}
	_ = os.Chmod(filepath.Join(dir, "d"), 0o700) //nolint:gosec // to be removed
}

// removing takes a directory away as soon as it is there.
type removing struct {
	*strings.Reader
	path string
}

func (r *removing) Read(b []byte) (int, error) {
	_ = os.Remove(r.path)
	return r.Reader.Read(b[:1])
}

// Nothing that the other end says writes outside of the target, or makes the end that receives hang or panic.
func FuzzSCPSink(f *testing.F) {
	for _, s := range []string{
		"C0644 3 a\nabc\x00", "D0755 0 d\nC0600 1 b\nx\x00E\n", "T1 0 1 0\nC0644 0 a\n\x00", "C0644 3 ../a\nabc\x00", "C0644 3 /a\nabc\x00",
		"D0755 0 ..\nE\n", "C7777777 1 a\n", "C0644 99999999999999999999 a\n", "\x01warning\n", "\x02fatal\n", "E\n", "\n", "C0644 1 d\nx\x00D0755 0 d\nE\n",
	} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, said []byte, recursive bool) {
		parent := t.TempDir()
		target := filepath.Join(parent, "target")
		if err := os.Mkdir(target, 0o700); err != nil {
			t.Fatal(err)
		}
		s := &scp{r: bufio.NewReader(bytes.NewReader(said)), w: io.Discard, recursive: recursive}
		_ = s.receive(target)
		entries, err := os.ReadDir(parent)
		if err != nil || len(entries) != 1 {
			t.Errorf("there is %v, %v", entries, err)
		}
	})
}

// TestSFTP has a client of the same library, which is what there is beside OpenSSH's, work on files. It is the real program: the
// agent executes itself.
func TestSFTP(t *testing.T) {
	t.Parallel()
	here, there := sockets(t)
	go sftpMain(there, io.Discard)
	client, err := sftp.NewClientPipe(here, here)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // a test's end
	dir := t.TempDir()
	f, err := client.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.PosixRename(filepath.Join(dir, "f"), filepath.Join(dir, "g")); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "g")); err != nil || info.Size() != 1<<20 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := client.Stat(filepath.Join(dir, "f")); !os.IsNotExist(err) {
		t.Errorf("of what is not there: %v", err)
	}
}
