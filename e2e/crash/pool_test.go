//go:build vm

package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// claimed makes and starts the VM of every scenario in one call, as "run" does; it may come from a template or the pool.
func claimed(ctx context.Context, c client) (*bangerv1.VM, error) {
	return c.create(ctx, subject, "none", true)
}

// serveWith starts a daemon that keeps so many VMs ready.
func (b *bed) serveWith(ready int) (client, func()) {
	b.Helper()
	b.write(filepath.Join(b.home, "config", "banger", "config.toml"), fmt.Sprintf("[templates]\nready = %d\n", ready))
	b.serve()
	rc, err := rpcclient.Connect(b.Context(), rpcclient.Options{Socket: b.runtime("banger.sock")})
	b.must(err)
	return client{Client: rc}, rc.Close
}

// spare has the daemon make a spare, and waits until it is there.
func (b *bed) spare(ctx context.Context, c client) {
	b.Helper()
	s, err := c.Templates.BuildTemplate(ctx, connect.NewRequest(&bangerv1.BuildTemplateRequest{Spec: c.spec("none")}))
	b.must(err)
	for s.Receive() { // to the end
	}
	b.must(s.Err())
	b.must(s.Close())
	_, err = c.create(ctx, "like", "none", true)
	b.must(err)
	b.must(c.delete(ctx, "like", true))
	for !b.said(`msg="spare made"`) {
		if ctx.Err() != nil {
			b.Fatalf("no spare is made\n%s", b.lastLog())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// said reports whether the newest daemon has logged a text.
func (b *bed) said(text string) bool {
	b.mu.Lock()
	n := b.logs
	b.mu.Unlock()
	log, _ := os.ReadFile(filepath.Join(b.home, fmt.Sprintf("daemon%d.log", n)))
	return strings.Contains(string(log), text)
}

// TestClaimCrashPoints kills the daemon before each call that it makes while somebody gets a VM that was kept ready. The next
// daemon, which keeps none, must find everything at rest: no spare is left, and the VM, if it is there, works.
func TestClaimCrashPoints(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	c, hangUp := b.serveWith(1)
	b.spare(ctx, c)
	b.write(filepath.Join(b.points, "calls"), "")
	_, err := claimed(ctx, c)
	b.must(err)
	text, err := os.ReadFile(filepath.Join(b.points, "calls"))
	b.must(err)
	calls := strings.Split(strings.TrimSpace(string(text)), "\n")
	if !b.said("VM created from a spare") {
		t.Fatalf("the VM was no spare\n%s", b.lastLog())
	}
	b.must(c.delete(ctx, subject, true))
	hangUp()
	b.kill(syscall.SIGTERM)

	broken := 0
	for name, n := range counted(calls) {
		p := point{name, n, "before"}
		c, hangUp := b.serveWith(1)
		b.spare(ctx, c)
		b.write(filepath.Join(b.points, "calls"), "")
		b.write(filepath.Join(b.points, "at"), p.String())
		_, acted := claimed(ctx, c)
		if os.Remove(filepath.Join(b.points, "at")) == nil { // it was not reached
			hangUp()
			b.kill(syscall.SIGKILL)
		} else {
			broken++
			b.awaitEnd()
			hangUp()
		}
		b.Logf("%s: %v", p, acted)
		c, hangUp = b.serveWith(0)
		b.afterwards(ctx, c, scenario{name: "claim"}, p, nil)
		hangUp()
		b.kill(syscall.SIGTERM)
		if b.Failed() {
			t.Fatalf("so it was after %s", p)
		}
	}
	t.Logf("%d calls, broken %d times", len(calls), broken)
	if broken < len(calls)*3/4 {
		t.Errorf("the claim was broken only %d times", broken)
	}
	b.serve() // for the end of the test
}
