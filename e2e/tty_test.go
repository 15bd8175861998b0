//go:build vm

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// terminal is a real terminal: a window of a tmux server of its own.
type terminal struct {
	t      *testing.T
	socket string
	env    []string
}

func newTerminal(t *testing.T, command string) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed")
	}
	dir, run := t.TempDir(), shortDir(t)
	if err := shared.plant(dir); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), homeEnv(dir, run)...)
	env = append(env, "PATH="+shared.bin+":"+os.Getenv("PATH"), "TMUX=", "BANGER_GUEST="+filepath.Join(shared.bin, "banger-guest"))
	term := &terminal{t: t, socket: filepath.Join(run, "tmux"), env: env}
	t.Cleanup(func() {
		_, _ = term.tmux("kill-server")
		takeDown(env, dir)
	})
	// The outer shell shows what is left of the terminal when banger has ended.
	term.must("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30",
		fmt.Sprintf("stty -a | sed 1d >%s/before; %s; echo status=$?; stty -a | sed 1d >%s/after; cmp %s/before %s/after && echo restored; sleep 600",
			dir, command, dir, dir, dir))
	term.must("set-option", "-g", "status", "off")
	term.must("resize-window", "-x", "100", "-y", "30")
	return term
}

// shortDir makes a directory whose path leaves room for socket names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "be2e") //nolint:usetesting // the test's name would make the path of a socket too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (term *terminal) tmux(args ...string) (string, error) {
	cmd := exec.Command("tmux", append([]string{"-S", term.socket}, args...)...)
	cmd.Env = term.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (term *terminal) must(args ...string) string {
	term.t.Helper()
	out, err := term.tmux(args...)
	if err != nil {
		term.t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (term *terminal) typeLine(text string) {
	term.t.Helper()
	term.must("send-keys", "-l", text)
	term.must("send-keys", "Enter")
}

// expect waits until the screen matches.
func (term *terminal) expect(pattern string) {
	term.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	deadline := time.Now().Add(90 * time.Second)
	for {
		screen := term.must("capture-pane", "-p")
		if re.MatchString(screen) {
			return
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("the screen never showed %q:\n%s", pattern, screen)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// A shell on a real terminal: prompt, size and resize, Ctrl-C reaches the guest, Ctrl-D ends, the terminal is restored.
func TestShellOnATerminal(t *testing.T) {
	t.Parallel()
	term := newTerminal(t, "banger run --rm --name tty --init agent")
	term.expect(`root@tty:.*#\s*$`)
	term.typeLine("stty size")
	term.expect(`^30 100$`)
	term.must("resize-window", "-x", "120", "-y", "40")
	time.Sleep(500 * time.Millisecond) // the guest's shell learns of the new size at its next prompt
	term.typeLine("stty size")
	term.expect(`^40 120$`)
	term.typeLine("sleep 1000")
	time.Sleep(time.Second) // for the sleep to be what Ctrl-C meets
	term.must("send-keys", "C-c")
	term.typeLine("echo after=$?")
	term.expect(`^after=130$`)
	term.must("send-keys", "C-d")
	term.expect(`^status=130$|^status=0$`)
	term.expect(`^restored$`)
}

// Leaving the shell of a VM that is kept leaves it running, and says so.
func TestLeavingAShellKeepsTheVM(t *testing.T) {
	t.Parallel()
	term := newTerminal(t, "banger run --name kept --init agent; banger ps")
	term.expect(`root@kept:.*#\s*$`)
	term.typeLine("exit 5")
	term.expect(`kept.*running`)
	term.expect(`^restored$`)
}

// The console has a way out.
func TestConsole(t *testing.T) {
	t.Parallel()
	term := newTerminal(t, "banger vm create --name con; banger vm console con")
	term.expect(`Ctrl-\]`)
	time.Sleep(time.Second)
	term.must("send-keys", "Enter")
	term.expect(`root@con:.*#\s*$|login:`)
	term.must("send-keys", "C-]")
	term.expect(`^restored$`)
}
