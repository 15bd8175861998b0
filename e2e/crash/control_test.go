//go:build vm

package crash

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/microvm"
)

// TestChecksCanFail shows each check something that it must complain about.
func TestChecksCanFail(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.serve()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	rc, err := b.connect(ctx)
	b.must(err)
	defer rc.Close()
	c := client{Client: rc}
	b.must(running(ctx, c))
	b.consistent(ctx, c)
	vm, err := c.get(ctx, subject)
	b.must(err)
	dir := b.state("vms", vm.GetId())

	sleep := exec.CommandContext(ctx, "sleep", "60")
	sleep.Env = b.environ()
	b.must(sleep.Start())
	b.must(os.Mkdir(b.state("vms", "ffffffffffff"), 0o700))
	b.must(os.Mkdir(b.runtime("vms", "eeeeeeeeeeee"), 0o700))
	b.write(b.runtime("left.sock"), "")
	b.write(filepath.Join(dir, "launch.json.tmp4711"), "")
	b.must(os.Rename(filepath.Join(dir, "work.img"), filepath.Join(b.home, "work.img")))
	_, problems := b.look(ctx, c)
	for _, words := range []string{"sleep 60", "ffffffffffff", "eeeeeeeeeeee", "left.sock", "launch.json.tmp4711", "work.img"} {
		if !strings.Contains(strings.Join(problems, "\n"), words) {
			t.Errorf("nobody complains of %s: %q", words, problems)
		}
	}
	if len(problems) != 6 {
		t.Errorf("there are complaints of what is in order: %q", problems)
	}

	b.must(sleep.Process.Kill())
	_ = sleep.Wait()
	b.must(os.Rename(filepath.Join(b.home, "work.img"), filepath.Join(dir, "work.img")))
	for _, path := range []string{
		b.state("vms", "ffffffffffff"), b.runtime("vms", "eeeeeeeeeeee"), b.runtime("left.sock"), filepath.Join(dir, "launch.json.tmp4711"),
	} {
		b.must(os.Remove(path))
	}
	if b.consistent(ctx, c); vm.GetState() != string(microvm.Running) {
		t.Errorf("the VM is %s", vm.GetState())
	}
	if _, busy := b.goroutines(); len(busy) == 0 { // the daemon follows a VM that runs
		t.Error("no goroutine is seen to serve the VM that runs")
	}
	b.serve()
	again, err := b.connect(ctx)
	b.must(err)
	defer again.Close()
	b.empty(ctx, client{Client: again})
}
