//go:build vm

package crash

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/microvm"
)

// shipwreck is what a daemon may leave behind: VMs by name, with the state that is recorded, and whether they run.
func shipwreck() []struct {
	name             string
	state            microvm.State
	alive, transient bool
} {
	return []struct {
		name             string
		state            microvm.State
		alive, transient bool
	}{
		{"running", microvm.Running, true, false},
		{"frozen", microvm.Paused, true, false}, // the daemon was killed between the resume and its record
		{"starting", microvm.Starting, true, false},
		{"stopping", microvm.Stopping, true, false},
		{"deleting", microvm.Deleting, true, false},
		{"stray", microvm.Stopped, true, false},
		{"transient", microvm.Running, true, true},
		{"dead", microvm.Running, false, false},
		{"unborn", microvm.Creating, false, false},
	}
}

// TestCrashInRecovery kills the daemon that clears up after another one, at each change that it makes. The third one
// must find its way.
func TestCrashInRecovery(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.wreck()
	b.write(filepath.Join(b.points, "calls"), "")
	b.serve()
	text, err := os.ReadFile(filepath.Join(b.points, "calls"))
	b.must(err)
	calls := strings.Split(strings.TrimSpace(string(text)), "\n")
	b.rescued()
	broken := 0
	for name, n := range counted(calls) {
		for _, mode := range modes(name) {
			if t.Failed() {
				return
			}
			if mode == "fail" || mode == "before" && !soak() { // before one change is after another
				continue
			}
			p := point{name, n, mode}
			b.wreck()
			b.write(filepath.Join(b.points, "calls"), "")
			b.write(filepath.Join(b.points, "at"), p.String())
			err := b.tryServe()
			if !errors.Is(os.Remove(filepath.Join(b.points, "at")), os.ErrNotExist) {
				t.Logf("%s was not reached: %v", p, err)
				b.kill(syscall.SIGKILL)
			} else {
				b.awaitEnd()
				broken++
			}
			b.serve()
			b.rescued()
			if t.Failed() {
				t.Logf("so it was after %s", p)
			}
		}
	}
	t.Logf("%d calls, broken %d times", len(calls), broken)
}

// wreck makes the shipwreck, without a daemon.
func (b *bed) wreck() {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	b.serve()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	for _, w := range shipwreck() {
		_, err := client{Client: rc}.create(ctx, w.name, "none", w.alive)
		b.must(err)
	}
	b.kill(syscall.SIGKILL)
	db, err := sql.Open("sqlite", b.state("banger.db"))
	b.must(err)
	defer db.Close() //nolint:errcheck // the statements tell
	for _, w := range shipwreck() {
		_, err := db.ExecContext(ctx, `UPDATE vms SET state = ?, ephemeral = ? WHERE name = ?`, w.state, w.transient, w.name)
		b.must(err)
	}
}

// rescued checks that recovery has done what it should, and clears the home.
func (b *bed) rescued() {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{Client: rc}
	want := map[string]microvm.State{
		"running": microvm.Running, "frozen": microvm.Running, "starting": microvm.Running, "stopping": microvm.Stopped,
		"stray": microvm.Stopped, "dead": microvm.Stopped,
	}
	for _, vm := range b.consistent(ctx, c) {
		name, state := vm.GetName(), microvm.State(vm.GetState())
		if want[name] != state {
			b.Errorf("%s is %s (%s), want %q", name, state, vm.GetCause(), want[name])
		}
		delete(want, name)
		if state == microvm.Running {
			if err := c.exec(ctx, name); err != nil {
				b.Errorf("%s: %v", name, err)
			}
		}
	}
	for name := range want {
		b.Errorf("%s is gone", name)
	}
	b.empty(ctx, c)
	b.kill(syscall.SIGTERM)
}
