//go:build vm

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobodyID is the user and group of the test: any that this host has nothing of.
const nobodyID = "4321"

// plain is an ordinary user with a home of his own, without any group, capability or way to get one.
type plain struct {
	*testing.T

	dir, run string
}

// newPlain makes a home with copies of the binaries and of the seed in it: what is linked would change its owner for all.
func newPlain(t *testing.T) plain {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("there is no setpriv (util-linux)")
	}
	p := plain{T: t}
	for _, dir := range []*string{&p.dir, &p.run} {
		var err error
		if *dir, err = os.MkdirTemp("", "bru"); err != nil { //nolint:usetesting // short, and where another user can reach it
			t.Fatal(err)
		}
	}
	t.Cleanup(p.takeDown)
	copies := [][2]string{
		{shared.bin, "bin"},
		{shared.seed + "/state/banger/images", "state/banger/images"},
		{shared.seed + "/state/banger/kernels", "state/banger/kernels"},
		{shared.seed + "/cache/banger/initramfs", "cache/banger/initramfs"},
	}
	for _, c := range copies {
		to := filepath.Join(p.dir, c[1])
		if _, err := os.Stat(c[0]); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-r", "--sparse=always", "--", c[0], to).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v\n%s", c[0], err, out)
		}
	}
	if err := withoutTemplates(filepath.Join(p.dir, "config/banger/config.toml")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "-R", nobodyID+":"+nobodyID, p.dir, p.run).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v\n%s", err, out)
	}
	return p
}

// command is a command as that user.
func (p plain) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "setpriv", append([]string{
		"--reuid", nobodyID, "--regid", nobodyID, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--",
	}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(homeEnv(p.dir, p.run), "PATH="+filepath.Join(p.dir, "bin")+":"+os.Getenv("PATH"), "TERM=dumb",
		"BANGER_GUEST="+filepath.Join(p.dir, "bin", "banger-guest"))
	return cmd
}

// do runs a command and returns its standard output and exit status.
func (p plain) do(args ...string) (string, int) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 3*time.Minute)
	defer cancel()
	cmd := p.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		p.Fatalf("%v: %v", args, err)
	}
	p.Logf("%v: status %d\n%s", args, cmd.ProcessState.ExitCode(), errs.String())
	return out.String(), cmd.ProcessState.ExitCode()
}

func (p plain) must(args ...string) string {
	p.Helper()
	out, status := p.do(args...)
	if status != 0 {
		p.Fatalf("%v ended with status %d", args, status)
	}
	return out
}

func (p plain) takeDown() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = p.command(ctx, "sh", "-c", "banger vm list -q | xargs -r banger vm delete --force; banger daemon stop").Run()
	for _, pid := range processesOf(p.dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = os.RemoveAll(p.dir)
	_ = os.RemoveAll(p.run)
}

// TestRootless has an ordinary user without any capability do what VMs are for. No process of banger's may have more.
func TestRootless(t *testing.T) {
	t.Parallel()
	p := newPlain(t)
	// What this proves it proves only of a user who may indeed do nothing.
	if out, _ := p.do("sh", "-c", "id -u; id -G; grep CapBnd /proc/self/status; touch /etc/rootless && echo written"); out !=
		nobodyID+"\n"+nobodyID+"\nCapBnd:\t0000000000000000\n" {
		t.Fatalf("the user is %q", out)
	}
	if out, status := p.do("banger", "run", "--rm", "--no-template", "--quiet", "--init", "agent", "--", "sh", "-c", "id -u; exit 7"); out != "0\n" || status != 7 {
		t.Errorf("run: %q, status %d", out, status)
	}
	p.must("banger", "vm", "create", "--name", "box", "--init", "agent")
	p.must("banger", "exec", "box", "--", "sh", "-c", "mkdir -p /root/d && chown 12:34 /root/d && sync")
	var vms []vmInfo
	if err := json.Unmarshal([]byte(p.must("banger", "vm", "show", "box", "--output", "json")), &vms); err != nil || len(vms) != 1 {
		t.Fatalf("%+v, %v", vms, err)
	}
	for what, pid := range map[string]int{"VMM": vms[0].VMMPid, "monitor": vms[0].MonitorPid} {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil || !strings.Contains(string(status), "\nUid:\t"+strings.Repeat(nobodyID+"\t", 3)+nobodyID+"\n") ||
			!strings.Contains(string(status), "\nCapPrm:\t0000000000000000\n") {
			t.Errorf("the %s has more than its user: %v\n%s", what, err, status)
		}
	}
	if out := p.must("banger", "fork", "box", "--name", "copy"); out != "copy\n" {
		t.Errorf("fork: %q", out)
	}
	if out := p.must("banger", "exec", "copy", "--", "stat", "-c", "%u:%g", "/root/d"); out != "12:34\n" {
		t.Errorf("in the copy the directory's owner is %q", out)
	}
	p.must("banger", "rm", "--force", "copy")
	p.must("banger", "stop", "box")
	p.must("banger", "start", "box")
	if out := p.must("banger", "exec", "box", "--", "stat", "-c", "%u:%g", "/root/d"); out != "12:34\n" {
		t.Errorf("the directory's owner is %q", out)
	}
	p.must("banger", "rm", "--force", "box")
	if left, err := os.ReadDir(filepath.Join(p.dir, "state/banger/vms")); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}
