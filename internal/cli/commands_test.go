package cli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew); got:\n%s", path, got)
	}
}

func someVMs() []*bangerv1.VM {
	then := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	return []*bangerv1.VM{
		{
			Id: "aaaa00000001", Name: "alpha", State: "running", Directory: "/state/vms/aaaa00000001",
			CreatedAt: timestamppb.New(then), ChangedAt: timestamppb.New(then.Add(time.Hour)),
			Spec: &bangerv1.Spec{
				Image: "debian", Kernel: "k", Vcpus: 2, Memory: 512 << 20, DiskSize: 8 << 30, Init: "auto", Net: "user",
				Backend: "auto", Env: map[string]string{"B": "2", "A": "1"},
			},
			BootId: "b", Accelerator: "tcg", Backend: "qemu", BackendReason: "no KVM", MonitorPid: 10, VmmPid: 11,
			KernelRelease: "6.1\x1b[31m", StartStages: []*bangerv1.Stage{{Name: "boot", Elapsed: durationpb.New(1500 * time.Millisecond)}},
		},
		{Id: "aaaa00000002", Name: "beta", State: "failed", Cause: "the guest\ndid not answer\x1b[2J", CreatedAt: timestamppb.New(then)},
		{Id: "bbbb00000003", Name: "aaaa", State: "stopped", Ephemeral: true},
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for ref, want := range map[string]string{
		"alpha": "aaaa00000001", "aaaa00000002": "aaaa00000002", "b": "bbbb00000003", "aaaa00000001": "aaaa00000001",
		"aaaa":       "bbbb00000003", // a name goes before a prefix
		"aaa":        "Invalid",
		"":           "NotFound",
		"Alpha":      "NotFound",
		"alph":       "NotFound", // a name has no prefixes
		"aaaa000001": "NotFound",
	} {
		vm, err := resolve(someVMs(), ref)
		switch {
		case want == "NotFound":
			if !fault.Is(err, fault.NotFound) || fault.HintOf(err) == "" {
				t.Errorf("%q: %v, %v", ref, vm, err)
			}
		case want == "Invalid":
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "aaaa00000002 (beta)") {
				t.Errorf("%q: %v, %v", ref, vm, err)
			}
		case err != nil || vm.GetId() != want:
			t.Errorf("%q: %v, %v", ref, vm, err)
		}
	}
}

func TestManyVMs(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs(), long: func(verb, vm string, send func(*bangerv1.Event) error) error {
		if verb != "stop" {
			return errors.New("a wrong call: " + verb)
		}
		switch vm {
		case "aaaa00000001":
			time.Sleep(30 * time.Millisecond) // the first is the last to end
			return send(&bangerv1.Event{Kind: &bangerv1.Event_Progress{Progress: &bangerv1.Progress{Stage: "s"}}})
		case "aaaa00000002":
			return remoteError(connect.CodeAborted, "busy", "VM beta is busy: start", "wait for it")
		default:
			return nil
		}
	}})
	b.run("stop", "alpha", "nosuch", "bbbb", "beta", "aaaa00000001", "aaaa").want(t, 125, "alpha\naaaa\n",
		"banger: stop \"nosuch\": there is no VM \"nosuch\"\n  try: see which there are: banger ps\n"+
			"banger: stop \"beta\": VM beta is busy: start\n  try: wait for it\n")
	b.run("vm", "stop", "bbbb", "aaaa").want(t, 0, "aaaa\n", "")
}

func TestCreateAndDelete(t *testing.T) {
	t.Parallel()
	var calls []string
	b := newBench(t, &fakeDaemon{vms: someVMs(), long: func(verb, vm string, _ func(*bangerv1.Event) error) error {
		calls = append(calls, verb+" "+vm)
		return nil
	}})
	b.run("vm", "create", "--name", "new").want(t, 0, "new\n", "")
	b.run("run", "-d", "--name", "new2").want(t, 0, "new2\n", "")
	b.run("rm", "--force", "beta").want(t, 0, "beta\n", "")
	b.run("start", "alpha").want(t, 0, "alpha\n", "")
	want := []string{"create new", "create new2", "delete aaaa00000002", "start aaaa00000001"}
	if !slices.Equal(calls, want) {
		t.Errorf("calls %v, want %v", calls, want)
	}
}

func TestListTable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	now := time.Date(2024, 5, 6, 10, 8, 9, 0, time.UTC)
	if err := writeVMTable(&out, painter{}, someVMs(), now); err != nil {
		t.Fatal(err)
	}
	golden(t, "list.txt", out.String())
	out.Reset()
	if err := writeVM(&out, painter{}, someVMs()[0], now); err != nil {
		t.Fatal(err)
	}
	golden(t, "show.txt", out.String())
}

func TestListForms(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs()})
	r := b.run("ps", "-o", "json")
	golden(t, "list.json", r.stdout)
	var views []map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &views); err != nil || len(views) != 3 {
		t.Errorf("%v, %d VMs", err, len(views))
	}
	golden(t, "list.yaml", b.run("vm", "list", "--output=yaml").stdout)
	b.run("ps", "-q").want(t, 0, "aaaa00000001\naaaa00000002\nbbbb00000003\n", "")
	r = b.run("vm", "show", "beta", "nosuch", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &views); err != nil || len(views) != 1 || views[0]["id"] != "aaaa00000002" || r.status != 125 {
		t.Errorf("%v, status %d, %v", err, r.status, views)
	}
	b.run("image", "list").want(t, 0, "NAME             DIGEST        SIZE  UNIQUE  SHARED  AGE  USERS  SOURCE\n"+
		"alpine           0123456789ab  8MiB                              registry\ndebian-bookworm  -\n", "")

	empty := newBench(t, &fakeDaemon{})
	empty.run("ps", "-o", "json").want(t, 0, "[]\n", "")
	empty.run("ps", "-o", "yaml").want(t, 0, "[]\n", "")
	empty.run("ps").want(t, 0, "NAME  ID  STATE  IMAGE  VCPU  MEMORY  AGE  CAUSE\n", "")
}

func TestHelp(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for name, args := range map[string][]string{
		"help-root.txt": nil, "help-vm.txt": {"vm"}, "help-run.txt": {"run", "--help"}, "help-exec.txt": {"exec", "box", "--help"},
		"help-image.txt": {"image"}, "help-image-import.txt": {"image", "import", "--help"},
	} {
		r := b.run(args...)
		if r.status != 0 || r.stderr != "" {
			t.Errorf("%v: status %d, stderr %q", args, r.status, r.stderr)
		}
		golden(t, name, r.stdout)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{logs: func(send func([]byte) error) error {
		return errors.Join(send([]byte("one\r\n\x00")), send([]byte("two")))
	}})
	b.run("logs", "box").want(t, 0, "one\r\n\x00two", "")
}

func TestVersionSkew(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{version: "v9\x1b"})
	r := b.run("ps", "-q")
	if r.status != 0 || !strings.HasPrefix(r.stderr, "banger: the daemon is version v9? and this command ") ||
		!strings.Contains(r.stderr, "banger daemon stop") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
	b.run("ps", "-q", "--quiet").want(t, 0, "", "")
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs(), version: "another"})
	complete := func(b *bench, args ...string) string {
		r := b.run(append([]string{"__complete"}, args...)...)
		if r.status != 0 {
			t.Errorf("%v: status %d, %s", args, r.status, r.stderr)
		}
		return r.stdout
	}
	for _, tc := range []struct{ args, want string }{
		{"exec ,", "alpha\nbeta\naaaa\n:4\n"},
		{"stop,alpha,", "beta\naaaa\n:4\n"},
		{"run,--image,", "alpine\ndebian-bookworm\n:4\n"},
		{"run,--kernel,", ":4\n"}, // the call fails
		{"run,--init,", "auto\nagent\nsystemd\n:4\n"},
		{"logs,alpha,", ":4\n"},
		{"image,pull,", "alpine\ndebian-bookworm\n:4\n"},
	} {
		if got := complete(b, strings.Split(strings.ReplaceAll(tc.args, " ", ""), ",")...); got != tc.want {
			t.Errorf("%q completes to %q, want %q", tc.args, got, tc.want)
		}
	}
	alone := newBench(t, nil)
	if got := complete(alone, "stop", ""); got != ":4\n" {
		t.Errorf("without a daemon: %q", got)
	}
	if _, err := os.Stat(filepath.Join(alone.env["HOME"], "banger")); !os.IsNotExist(err) {
		t.Errorf("completion made a runtime directory: %v", err)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := b.run("completion", shell); r.status != 0 || !strings.Contains(r.stdout, "banger") {
			t.Errorf("completion %s: status %d", shell, r.status)
		}
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{doctor: &bangerv1.DoctorResponse{
		Checks: []*bangerv1.Check{
			{Name: "qemu", Result: "pass", Detail: "7.2"}, {Name: "kvm", Result: "warn", Detail: "none", Fix: "use another machine"},
		},
		Defaults: &bangerv1.Spec{Vcpus: 1, DiskSize: 8 << 30}, DefaultSources: map[string]string{"disk_size": "config file"},
	}})
	r := b.run("doctor")
	if r.status != 0 || !strings.Contains(r.stdout, "pass  qemu  7.2\nwarn  kvm   none\n            try: use another machine\n") ||
		!strings.Contains(r.stdout, "disk-size  8GiB   config file\n") {
		t.Errorf("status %d:\n%s", r.status, r.stdout)
	}

	failing := newBench(t, &fakeDaemon{doctor: &bangerv1.DoctorResponse{Checks: []*bangerv1.Check{{Name: "x", Result: "fail"}}}})
	if r := failing.run("doctor", "--json"); r.status != 1 || !strings.Contains(r.stdout, `"ok": false`) {
		t.Errorf("status %d:\n%s", r.status, r.stdout)
	}

	alone := newBench(t, nil) // and no way to start one
	r = alone.run("doctor")
	if r.status != 1 || !strings.Contains(r.stdout, "fail  daemon") || !strings.Contains(r.stdout, "directories") ||
		!strings.Contains(r.stdout, "database       there is none yet") || !strings.Contains(r.stdout, "VMs            0 with files") {
		t.Errorf("status %d:\n%s", r.status, r.stdout)
	}
}

func TestDaemonStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{})
	if r := b.run("daemon", "status"); r.status != 0 || !strings.Contains(r.stdout, "4711") {
		t.Errorf("status %d:\n%s", r.status, r.stdout)
	}
	alone := newBench(t, nil)
	if r := alone.run("daemon", "status", "-o", "json"); r.status != 1 || !strings.Contains(r.stdout, `"running": false`) {
		t.Errorf("status %d:\n%s", r.status, r.stdout)
	}
	alone.run("daemon", "stop").want(t, 0, "", "")
}

func TestDaemonLogs(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	if r := b.run("daemon", "logs"); r.status != 125 {
		t.Errorf("no log: status %d", r.status)
	}
	dir := filepath.Join(b.env["HOME"], ".local/state/banger")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 20000)
	if err := os.WriteFile(filepath.Join(dir, "daemon.log"), []byte("one\n"+long+"\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run("daemon", "logs", "-n", "1").want(t, 0, "three\n", "")
	b.run("daemon", "logs", "-n", "2").want(t, 0, long+"\nthree\n", "")
	b.run("daemon", "logs").want(t, 0, "one\n"+long+"\nthree\n", "")
	b.run("daemon", "logs", "-n", "0").want(t, 0, "", "")
}

func TestImagePull(t *testing.T) {
	t.Parallel()
	newBench(t, &fakeDaemon{}).run("image", "pull", "alpine", "nonesuch", "never").want(t, 125, "alpine sha256:01\n",
		"banger: pull \"nonesuch\": no such image\n  try: look: banger image list\n")
}

func TestRoots(t *testing.T) {
	t.Parallel()
	signals := make(chan os.Signal, 1)
	sys := System{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard, Signals: signals, LookupEnv: os.LookupEnv}
	dir := ""
	roots := Roots{
		Daemon: func(ctx context.Context) error {
			signals <- syscall.SIGTERM
			<-ctx.Done()
			return ctx.Err()
		},
		Monitor: func(_ context.Context, d string) error {
			dir = d
			return errors.New("no VMM")
		},
	}
	if status := Main(t.Context(), []string{"daemon", "run"}, roots, sys); status != 0 {
		t.Errorf("daemon run, ended by a signal: status %d", status)
	}
	if status := Main(t.Context(), []string{"monitor", "/x"}, roots, sys); status != 125 || dir != "/x" {
		t.Errorf("monitor: status %d, directory %q", status, dir)
	}
	if status := Main(t.Context(), []string{"monitor"}, roots, sys); status != 2 {
		t.Errorf("monitor without a directory: status %d", status)
	}
}
