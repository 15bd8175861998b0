package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
)

func machine(t *testing.T) hypervisor.Machine {
	t.Helper()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Machine{ID: "0123456789ab", VCPUs: 1, Memory: 256 << 20, Kernel: empty, Initramfs: empty, Dir: dir}
}

// negotiated is a stand-in for QEMU's first words and the answer to the first command, which has the id 1.
const negotiated = `echo '{"QMP": {}}' >&3; read line <&3; echo '{"return": {}, "id": 1}' >&3; `

func TestBootFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		qemu string
		want string
		kind fault.Kind
	}{
		"says why and ends": {"echo unsupported machine type >&2; exit 1", "unsupported machine type", fault.Internal},
		"ends early":        {"exit 0", "exit status 0", fault.Internal},
		"not QMP":           {"echo hello >&3; exec sleep 60", "signal: killed", fault.Internal},
		"refuses":           {`echo '{"QMP": {}}' >&3; read line <&3; echo '{"error": {"desc": "not today"}, "id": 1}' >&3; exec sleep 60`, "not today", fault.Internal},
		"silent":            {"exec sleep 60", "greeting", fault.Timeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			vmm, err := New(Host{Binary: script(t, c.qemu)}).Boot(ctx, machine(t))
			if err == nil {
				vmm.Kill()
			}
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Boot() = %v (%s), want kind %s and %q", err, fault.KindOf(err), c.kind, c.want)
			}
		})
	}
}

func TestBootWithoutBinary(t *testing.T) {
	t.Parallel()
	_, err := New(Host{Binary: filepath.Join(t.TempDir(), "qemu")}).Boot(t.Context(), machine(t))
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.HintOf(err), debianPackage) {
		t.Errorf("Boot() = %v (hint %q)", err, fault.HintOf(err))
	}
}

// Boot takes over the network's socket: it is closed even if the machine makes no sense.
func TestBootClosesNIC(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // a test's end
	m := machine(t)
	m.NIC = &hypervisor.NIC{MAC: "nonsense", Conn: w}
	if _, err := New(Host{}).Boot(t.Context(), m); !fault.Is(err, fault.Invalid) {
		t.Errorf("Boot() = %v", err)
	}
	if _, err := w.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Error("the network's file is still open")
	}
}

func TestCmdlineTooLong(t *testing.T) {
	t.Parallel()
	m := machine(t)
	m.Cmdline = strings.Repeat("x", hypervisor.MaxCmdline-10)
	if _, err := New(Host{}).Boot(t.Context(), m); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "command line") {
		t.Errorf("Boot() = %v", err)
	}
}

func TestExitCauses(t *testing.T) {
	t.Parallel()
	event := func(guest, reason string) string {
		return negotiated + `echo '{"event": "SHUTDOWN", "data": {"guest": ` + guest + `, "reason": "` + reason + `"}}' >&3; exit 0`
	}
	for name, c := range map[string]struct {
		qemu, says string
		want       hypervisor.Cause
	}{
		"shutdown":      {event("true", "guest-shutdown"), "guest-shutdown", hypervisor.GuestShutdown},
		"reset":         {event("true", "guest-reset"), "guest-reset", hypervisor.GuestReset},
		"panic":         {event("true", "guest-panic"), "guest-panic", hypervisor.GuestReset},
		"host's signal": {event("false", "host-signal"), "host-signal", hypervisor.Crashed},
		"no event":      {negotiated + "exit 0", "exit status 0", hypervisor.Crashed},
		"abort":         {negotiated + "echo assertion failed >&2; kill -ABRT $$", "assertion failed", hypervisor.Crashed},
		"QMP is lost":   {negotiated + "echo nonsense >&3; exec sleep 60", "killed", hypervisor.Crashed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vmm, err := New(Host{Binary: script(t, c.qemu)}).Boot(t.Context(), machine(t))
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-vmm.Done():
			case <-time.After(30 * time.Second):
				t.Fatal("the VMM does not end")
			}
			if got := vmm.Exit(); got.Cause != c.want || !strings.Contains(got.Detail, c.says) {
				t.Errorf("Exit() = %+v, want cause %s and %q", got, c.want, c.says)
			}
			if err := vmm.Pause(t.Context()); !fault.Is(err, fault.Precondition) {
				t.Errorf("Pause() after the end = %v", err)
			}
		})
	}
}

// QEMU runs what a hostile guest gives it: the caller's environment is no business of it.
func TestEnvironmentIsNotInherited(t *testing.T) {
	t.Setenv("BANGER_SECRET", "hunter2")
	vmm, err := New(Host{Binary: script(t, negotiated+"env >&2; exit 1")}).Boot(t.Context(), machine(t))
	if err != nil {
		t.Fatal(err)
	}
	<-vmm.Done()
	if got := vmm.Exit().Detail; strings.Contains(got, "hunter2") || !strings.Contains(got, "PATH=") {
		t.Errorf("QEMU's environment: %s", got)
	}
}
