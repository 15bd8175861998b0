//go:build vm

package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

// fuzzer is several users who do random things to the same few VMs, while a killer kills what it finds.
type fuzzer struct {
	*bed

	seed  uint64
	until time.Time

	mu    sync.Mutex
	done  map[string]int // how often each verb was done, and with which outcome
	kills map[string]int
	trace []string // what was done, newest last
}

const (
	users    = 4
	vmNames  = 6
	maxTrace = 400
)

func number(variable string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(variable), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// TestCrashFuzz runs random verbs from several clients while the daemon, monitors and VMMs are killed at random moments.
// What each user does is decided by the seed; what the scheduler makes of it is not.
func TestCrashFuzz(t *testing.T) {
	seconds := number("BANGER_CRASH_SECONDS", 45)
	f := &fuzzer{
		bed: newBed(t), seed: number("BANGER_CRASH_SEED", rand.Uint64()), // not a secret
		until: time.Now().Add(time.Duration(seconds) * time.Second), done: map[string]int{}, kills: map[string]int{}, // small
	}
	t.Logf("repeat with BANGER_CRASH_SEED=%d", f.seed)
	f.serve()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(seconds)*time.Second+3*time.Minute) // small
	defer cancel()
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() { f.use(ctx, i) })
	}
	f.terrorise(ctx)
	wg.Wait()
	f.settle(ctx)
	t.Logf("killed: %v", f.kills)
	t.Logf("done: %v", f.done)
	if t.Failed() {
		t.Logf("BANGER_CRASH_SEED=%d; last things done:\n%s", f.seed, strings.Join(f.trace, "\n"))
	}
}

func (f *fuzzer) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trace = append(f.trace, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	if len(f.trace) > maxTrace {
		f.trace = f.trace[len(f.trace)-maxTrace:]
	}
}

// use does one random thing after the other.
func (f *fuzzer) use(ctx context.Context, user int) {
	rng := rand.New(rand.NewPCG(f.seed, uint64(user))) // not a secret
	for time.Now().Before(f.until) {
		rc, err := f.connect(ctx)
		if err != nil { // there is no daemon at the moment
			time.Sleep(20 * time.Millisecond)
			continue
		}
		for range 1 + rng.IntN(8) {
			if err = f.doOne(ctx, client{Client: rc}, rng, user); fault.Is(err, fault.Unavailable) || time.Now().After(f.until) {
				break
			}
		}
		rc.Close()
	}
}

// doOne does one thing, for which the user has only so much patience.
func (f *fuzzer) doOne(ctx context.Context, c client, rng *rand.Rand, user int) error {
	name := fmt.Sprintf("vm%d", rng.IntN(vmNames))
	net := []string{"none", "user"}[rng.IntN(2)]
	patience := 60 * time.Second
	if rng.IntN(6) == 0 {
		patience = time.Duration(rng.IntN(600)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	verb := func(do func(client, context.Context, string) (*bangerv1.VM, error)) func() error {
		return func() error { _, err := do(c, ctx, name); return err }
	}
	verbs := []struct {
		name   string
		weight int
		do     func() error
	}{
		{"create", 5, func() error { _, err := c.create(ctx, name, net, false); return err }},
		{"create --start", 4, func() error { _, err := c.create(ctx, name, net, true); return err }},
		{"start", 6, verb(client.start)},
		{"stop", 3, verb(client.stop)},
		{"restart", 2, verb(client.restart)},
		{"kill", 2, verb(client.kill)},
		{"pause", 2, verb(client.pause)},
		{"resume", 3, verb(client.resume)},
		{"delete", 2, func() error { return c.delete(ctx, name, false) }},
		{"delete --force", 2, func() error { return c.delete(ctx, name, true) }},
		{"exec", 6, func() error { return c.exec(ctx, name) }},
		{"run --rm", 3, func() error { return c.runRemove(ctx, "", net) }},
		{"fork", 2, verb(client.fork)},
		{"snapshot", 2, verb(client.snapshot)},
		{"restore", 2, verb(client.restore)},
		{"delete snapshot", 1, func() error { return c.deleteSnapshot(ctx, name) }},
		{"list", 1, func() error { _, err := c.list(ctx); return err }},
	}
	total := 0
	for _, v := range verbs {
		total += v.weight
	}
	pick := rng.IntN(total)
	for _, v := range verbs {
		if pick -= v.weight; pick >= 0 {
			continue
		}
		began := time.Now()
		err := v.do()
		took := time.Since(began)
		f.note("user %d: %s %s: %v (%s)", user, v.name, name, err, took.Round(time.Millisecond))
		f.count(v.name, err)
		if took > 50*time.Second {
			f.Errorf("%s %s took %s: %v", v.name, name, took, err)
		}
		return err
	}
	return nil
}

func (f *fuzzer) count(verb string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	outcome := " ok"
	if err != nil {
		outcome = " " + fault.KindOf(err).String()
	}
	f.done[verb+outcome]++
	switch k := fault.KindOf(err); {
	case err == nil:
	case k == fault.Corrupt:
		f.Errorf("%s: %v", verb, err)
	case k == fault.Internal: // for people to look at: a process that was killed is none of the user's doing
		f.Logf("%s: %v", verb, err)
	}
}

// terrorise kills something now and then, and starts the daemon again.
func (f *fuzzer) terrorise(ctx context.Context) {
	rng := rand.New(rand.NewPCG(f.seed, 1<<32)) // not a secret
	for time.Now().Before(f.until) && ctx.Err() == nil {
		time.Sleep(time.Duration(rng.IntN(900)) * time.Millisecond)
		switch rng.IntN(4) {
		case 0:
			f.killed("daemon")
			f.kill(syscall.SIGKILL)
			f.serve()
		case 1:
			f.killed("daemon politely")
			f.kill(syscall.SIGTERM)
			f.serve()
		default:
			f.killSome(rng)
		}
	}
}

func (f *fuzzer) killed(what string) {
	f.note("kill %s", what)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kills[what]++
}

// killSome kills a monitor, or the process of a VM, or whatever the daemon has started besides.
func (f *fuzzer) killSome(rng *rand.Rand) {
	var pids []int
	all := f.processes()
	for pid := range all {
		if pid != f.pid() {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return
	}
	pid := pids[rng.IntN(len(pids))]
	what := "other"
	switch {
	case strings.Contains(all[pid], " monitor "):
		what = "monitor"
	case strings.Contains(all[pid], "banger-guest"):
		what = "VMM"
	}
	f.killed(what)
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// settle gives the last daemon a successor, which must find everything in order and go on.
func (f *fuzzer) settle(ctx context.Context) {
	f.kill(syscall.SIGKILL)
	f.serve()
	rc, err := f.connect(ctx)
	f.must(err)
	defer rc.Close()
	c := client{Client: rc}
	for _, vm := range f.consistent(ctx, c) {
		switch microvm.State(vm.GetState()) {
		case microvm.Paused:
			_, err = c.resume(ctx, vm.GetId())
		case microvm.Stopped, microvm.Suspended, microvm.Failed:
			_, err = c.start(ctx, vm.GetId())
		default:
			err = nil
		}
		if err = errors.Join(err, c.exec(ctx, vm.GetId())); err != nil {
			f.Errorf("use %s, which is %s (%s): %v\n%s", vm.GetName(), vm.GetState(), vm.GetCause(), err, f.lastLog())
		}
	}
	f.empty(ctx, c)
	first := usageOf(f.pid())
	for i := range 10 { // the survivor must not keep anything of VMs that come and go
		b := fmt.Sprintf("last%d", i)
		_, err := c.create(ctx, b, "user", true)
		f.must(err)
		f.must(c.exec(ctx, b))
		f.must(c.delete(ctx, b, true))
	}
	f.empty(ctx, c)
	if end := settled(f.pid(), first.fds); end.fds > first.fds {
		f.Errorf("the daemon used %+v, and after ten more VMs %+v", first, end)
	}
	if _, busy := f.goroutines(); len(busy) > 0 {
		f.Errorf("goroutines without a VM:\n%s", strings.Join(busy, "\n\n"))
	}
}
