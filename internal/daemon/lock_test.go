package daemon

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"banger/internal/config"
	"banger/internal/fault"
)

// lockVariable makes this test binary a process that takes the lock of the state directory named, says so, and waits for
// the end of its standard input.
const lockVariable = "DAEMON_TEST_LOCK"

func TestMain(m *testing.M) {
	dir := os.Getenv(lockVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	lock, err := takeLock(config.Paths{State: dir})
	if err != nil {
		_, _ = fmt.Println(err)
		os.Exit(1)
	}
	_, _ = fmt.Println("locked", lock.Fd())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// holder starts a process that takes the lock, and returns what it says and a function that kills it.
func holder(t *testing.T, dir string) (said string, kill func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), lockVariable+"="+dir)
	_, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, _ = bufio.NewReader(out).ReadString('\n')
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	return strings.TrimSpace(said), kill
}

func TestOneDaemonHasTheLock(t *testing.T) {
	t.Parallel()
	p := config.Paths{State: t.TempDir()}
	said, kill := holder(t, p.State)
	if !strings.HasPrefix(said, "locked") {
		t.Fatal(said)
	}
	if _, err := takeLock(p); !fault.Is(err, fault.Exists) || !strings.Contains(err.Error(), "another daemon (process ") {
		t.Errorf("with the lock held: %v", err)
	}
	kill()
	lock, err := takeLock(p)
	if err != nil {
		t.Fatalf("after its holder was killed: %v", err)
	}
	defer lock.Close() //nolint:errcheck // test
	if said, _ := holder(t, p.State); !strings.Contains(said, "another daemon") {
		t.Errorf("another process, with the lock held here: %q", said)
	}
}

// TestLockIsNotInherited is about the moment between fork and exec, in which a child has all descriptors of its parent. A
// child that was given the descriptor stands for it.
func TestLockIsNotInherited(t *testing.T) {
	t.Parallel()
	p := config.Paths{State: t.TempDir()}
	lock, err := takeLock(p)
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.CommandContext(t.Context(), "sleep", "60")
	sleep.ExtraFiles = []*os.File{lock}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()                          //nolint:errcheck // killed
	defer sleep.Process.Signal(syscall.SIGKILL) //nolint:errcheck // at the end
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if said, _ := holder(t, p.State); !strings.HasPrefix(said, "locked") {
		t.Errorf("with a child that has the descriptor: %q", said)
	}
}
