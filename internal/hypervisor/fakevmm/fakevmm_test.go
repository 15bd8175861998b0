package fakevmm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fakevmm"
	"banger/internal/hypervisor/hypervisortest"
)

func TestConformance(t *testing.T) {
	guest := hypervisortest.BuildGuest(t)
	hypervisortest.Run(t, hypervisortest.Suite{
		Backend: func(*testing.T) hypervisor.Backend { return fakevmm.New([]string{guest}, fakevmm.Faults{}) },
		Machine: machine,
		Answer:  10 * time.Second,
		Boots:   20,
	})
}

// machine returns a machine whose kernel and initramfs are empty files: they only have to be there.
func machine(t *testing.T) hypervisor.Machine {
	t.Helper()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "vmm")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Machine{
		ID: "0123456789ab", Name: "test", VCPUs: 1, Memory: 256 << 20, Kernel: empty, Initramfs: empty, Dir: own,
	}
}

func TestExitStatusTellsCause(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		script string
		want   hypervisor.Cause
	}{
		{"exit 0", hypervisor.GuestShutdown},
		{"exit 75", hypervisor.GuestReset},
		{"exit 1", hypervisor.Crashed},
		{"kill -SEGV $$", hypervisor.Crashed},
	} {
		t.Run(c.script, func(t *testing.T) {
			t.Parallel()
			vmm := boot(t, fakevmm.New([]string{"/bin/sh", "-c", c.script}, fakevmm.Faults{}))
			<-vmm.Done()
			if got := vmm.Exit(); got.Cause != c.want || got.Detail == "" || got.At.IsZero() {
				t.Errorf("Exit() = %+v, want cause %s, a detail and a time", got, c.want)
			}
		})
	}
}

func TestGuestFindsItsDescriptorsAndEnvironment(t *testing.T) {
	t.Parallel()
	vmm := boot(t, fakevmm.New([]string{"/bin/sh", "-c", `read line <&3; echo "$line $FAKEVMM_ID" >&4; echo last words`}, fakevmm.Faults{}))
	if _, err := vmm.Link().Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	<-vmm.Done()
	buf := make([]byte, 100)
	n, err := vmm.Console().Read(buf)
	if got := string(buf[:n]); got != "hello 0123456789ab\nlast words\n" || err != nil {
		t.Errorf("console = %q, %v", got, err)
	}
}

func TestFaultBoot(t *testing.T) {
	t.Parallel()
	want := fault.New(fault.Exhausted, "no memory")
	b := fakevmm.New([]string{"/bin/true"}, fakevmm.Faults{Boot: want})
	if _, err := b.Boot(t.Context(), machine(t)); !errors.Is(err, want) {
		t.Errorf("Boot() = %v, want %v", err, want)
	}
}

// A mute guest is alive and swallows what it is sent; the control is the suite's round trip.
func TestFaultMute(t *testing.T) {
	t.Parallel()
	vmm := boot(t, fakevmm.New([]string{"/bin/sh", "-c", "cat <&3"}, fakevmm.Faults{Mute: true}))
	link := vmm.Link()
	if _, err := link.Write([]byte("echo hello\n")); err != nil {
		t.Fatalf("write to the link: %v", err)
	}
	if err := link.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := link.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read of the link = %d, %v, want a deadline that passed", n, err)
	}
	if s, err := vmm.Status(t.Context()); s != hypervisor.Running || err != nil {
		t.Errorf("Status() = %s, %v", s, err)
	}
	vmm.Kill()
	if got := vmm.Exit().Cause; got != hypervisor.Killed {
		t.Errorf("cause = %s, want %s", got, hypervisor.Killed)
	}
}

func boot(t *testing.T, b hypervisor.Backend) hypervisor.VMM {
	t.Helper()
	vmm, err := b.Boot(t.Context(), machine(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vmm.Kill()
		_, _ = vmm.Link().Close(), vmm.Console().Close()
	})
	return vmm
}
