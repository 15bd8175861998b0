package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"banger/internal/fault"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	const intel, plain = "processor\t: 0\nflags\t\t: fpu vme vmx smx\n", "flags\t\t: fpu vmx_like svmx\nbugs : vmx\n"
	works := func() error { return nil }
	for _, c := range []struct {
		name  string
		files map[string]string
		probe func() error
		want  Accelerator
		says  string
	}{
		{"no device", map[string]string{"proc/cpuinfo": intel}, works, TCG, "no /dev/kvm"},
		{"flag", map[string]string{"dev/kvm": "", "proc/cpuinfo": intel}, works, KVM, "test guest"},
		{"svm", map[string]string{"dev/kvm": "", "proc/cpuinfo": "flags : svm"}, works, KVM, "test guest"},
		{"module", map[string]string{"dev/kvm": "", "proc/cpuinfo": plain, "sys/module/kvm_amd/x": ""}, works, KVM, "test guest"},
		{"pvm", map[string]string{"dev/kvm": "", "proc/cpuinfo": plain, "sys/module/kvm_pvm/x": ""}, works, TCG, "VMX"},
		{"pvm on a CPU with VMX", map[string]string{"dev/kvm": "", "proc/cpuinfo": intel, "sys/module/kvm_pvm/x": ""}, works, TCG, "VMX"},
		{"no cpuinfo", map[string]string{"dev/kvm": ""}, works, TCG, "VMX"},
		{
			"probe fails",
			map[string]string{"dev/kvm": "", "proc/cpuinfo": intel},
			func() error { return errors.New("it hung") }, TCG, "it hung",
		},
		{"not a device", map[string]string{"dev/kvm/x": ""}, works, TCG, "does not open"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for name, text := range c.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, reason := decide(root, c.probe)
			if got != c.want || !strings.Contains(reason, c.says) {
				t.Errorf("decide() = %s, %q, want %s and %q", got, reason, c.want, c.says)
			}
		})
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright": "7.2.22",
		"QEMU emulator version 10.0.2":                                           "10.0.2",
		"QEMU emulator version 9.2":                                              "9.2",
		"QEMU emulator version 99999.1.2":                                        "",
		"bash 5.2":                                                               "",
		"":                                                                       "",
	} {
		if got, _, _, ok := parseVersion(text); got != want || ok != (want != "") {
			t.Errorf("parseVersion(%q) = %q, %v, want %q", text, got, ok, want)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("QEMU emulator version 7.2.22 (Debian)")
	f.Fuzz(func(t *testing.T, text string) {
		if v, major, minor, ok := parseVersion(text); ok != (v != "") || major < 0 || minor < 0 {
			t.Errorf("parseVersion(%q) = %q, %d, %d, %v", text, v, major, minor, ok)
		}
	})
}

func FuzzHasFlag(f *testing.F) {
	f.Add([]byte("flags : vmx\n\n"))
	f.Fuzz(func(_ *testing.T, text []byte) { hasFlag(text) })
}

// script makes an executable that stands in for QEMU.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	// A child that is forked meanwhile would hold the file open for writing, and it could not be executed (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil { // it is to be run
		t.Fatal(err)
	}
	return path
}

func TestDetect(t *testing.T) {
	t.Parallel()
	host, err := Detect(t.Context(), Config{Binary: script(t, "echo QEMU emulator version 8.1.0"), Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if host.Version != "8.1.0" || host.Accelerator != TCG || host.Reason != "there is no /dev/kvm" {
		t.Errorf("Detect() = %+v", host)
	}
	for name, c := range map[string]struct {
		config Config
		want   fault.Kind
		hint   string
	}{
		"too old":         {Config{Binary: script(t, "echo QEMU emulator version 7.1.9")}, fault.Unsupported, "7.2"},
		"something else":  {Config{Binary: script(t, "echo hello")}, fault.Unsupported, debianPackage},
		"not there":       {Config{Binary: filepath.Join(t.TempDir(), "qemu")}, fault.Unsupported, debianPackage},
		"bad accelerator": {Config{Binary: script(t, "echo QEMU emulator version 8.1.0"), Force: "xen"}, fault.Invalid, "kvm"},
	} {
		if _, err := Detect(t.Context(), c.config); !fault.Is(err, c.want) || !strings.Contains(fault.HintOf(err), c.hint) {
			t.Errorf("%s: Detect() = %v (hint %q), want kind %s and a hint with %q", name, err, fault.HintOf(err), c.want, c.hint)
		}
	}
}

func TestDetectWithoutQEMU(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := os.Stat("/usr/local/sbin/" + program); err == nil {
		t.Skip("QEMU is found without PATH")
	}
	_, err := Detect(t.Context(), Config{})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(fault.HintOf(err), debianPackage) {
		t.Errorf("Detect() = %v (hint %q)", err, fault.HintOf(err))
	}
}

func TestDetectForced(t *testing.T) {
	t.Parallel()
	host, err := Detect(t.Context(), Config{Binary: script(t, "echo QEMU emulator version 8.1.0"), Force: KVM, Root: t.TempDir()})
	if err != nil || host.Accelerator != KVM {
		t.Errorf("Detect() = %+v, %v", host, err)
	}
}

func TestMeasureTSC(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("no time stamp counter on " + runtime.GOARCH)
	}
	first, err := measureTSC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := measureTSC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if off := max(first, second) - min(first, second); off > first/2000 {
		t.Errorf("two measurements, %d and %d kHz, differ by more than 0.05 %%", first, second)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := measureTSC(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("measureTSC() = %v with an ended context", err)
	}
}
