package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// The program, the Debian package that has it, and what to tell people without it.
const (
	program       = "qemu-system-x86_64"
	debianPackage = "qemu-system-x86"
	installHint   = "install it: sudo apt-get install --no-install-recommends " + debianPackage
)

// The oldest version that has what is used here: 7.2 brought the stream netdev.
const minMajor, minMinor = 7, 2

// Accelerator is how QEMU executes the guest's instructions.
type Accelerator string

// The accelerators.
const (
	KVM Accelerator = "kvm" // by the CPU's own virtualization
	TCG Accelerator = "tcg" // by translating them: works everywhere, several times slower
)

// Config says what [Detect] looks at. The zero value is right but for tests and for people who insist.
type Config struct {
	Binary string      // QEMU's path; empty: looked up in PATH
	Force  Accelerator // empty: KVM if it is usable, else TCG
	Root   string      // root of the file system with /proc, /sys and /dev; empty: /
}

// Host is what a machine has for QEMU. It is plain data: one process may detect it and others use it.
type Host struct {
	Binary      string      `json:"binary"`
	Version     string      `json:"version"` // "7.2.22"
	Accelerator Accelerator `json:"accelerator"`
	Reason      string      `json:"reason"`  // why this accelerator, in words
	TSCKHz      int         `json:"tsc_khz"` // rate of the host's time stamp counter; 0 if it has none
}

// Detect finds QEMU and decides how guests are executed. It takes about 0.1 s, and at most the two seconds of a KVM probe
// that hangs. Without QEMU, or with one that is too old, the error is fault.Unsupported.
func Detect(ctx context.Context, c Config) (Host, error) {
	h := Host{Binary: c.Binary}
	if h.Binary == "" {
		path, err := hostexec.Look(program, debianPackage)
		if err != nil {
			return Host{}, err
		}
		h.Binary = path
	}
	var err error
	if h.Version, err = version(ctx, h.Binary); err != nil {
		return Host{}, err
	}
	if h.TSCKHz, err = measureTSC(ctx); ctx.Err() != nil {
		return Host{}, fmt.Errorf("measure the time stamp counter: %w", err)
	}
	switch c.Force {
	case "":
		h.Accelerator, h.Reason = decide(c.root(), func() error { return runProbe(ctx, h.Binary, KVM) })
	case KVM, TCG:
		h.Accelerator, h.Reason = c.Force, "the configuration says so"
	default:
		return Host{}, fault.New(fault.Invalid, "bad accelerator %q", c.Force).WithHint("use kvm or tcg")
	}
	return h, ctx.Err()
}

func (c Config) root() string {
	if c.Root == "" {
		return "/"
	}
	return c.Root
}

// version asks QEMU for its version and refuses one that is too old.
func version(ctx context.Context, path string) (string, error) {
	out, err := hostexec.Output(ctx, hostexec.Cmd{Path: path, Args: []string{"--version"}})
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.Unsupported, "ask QEMU for its version: %w", err).WithHint("%s", installHint)
	}
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	v, major, minor, ok := parseVersion(string(out))
	if !ok {
		return "", fault.New(fault.Unsupported, "ask %s for its version: the answer is not one of QEMU", path).
			WithHint("%s", installHint)
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return "", fault.New(fault.Unsupported, "QEMU %s is too old", v).
			WithHint("banger needs QEMU %d.%d or later (package %s)", minMajor, minMinor, debianPackage)
	}
	return v, nil
}

func parseVersion(text string) (v string, major, minor int, ok bool) {
	m := regexp.MustCompile(`^QEMU emulator version ((\d{1,4})\.(\d{1,4})(?:\.\d{1,4}){0,2})`).FindStringSubmatch(text)
	if m == nil {
		return "", 0, 0, false
	}
	major, _ = strconv.Atoi(m[2]) // at most four digits
	minor, _ = strconv.Atoi(m[3])
	return m[1], major, minor, true
}

// decide says whether KVM is usable for stock kernels, and why. That /dev/kvm opens proves nothing: modules that run
// guests without the CPU's virtualization provide it too, and stock kernels hang on them.
func decide(root string, probe func() error) (Accelerator, string) {
	device := filepath.Join(root, "dev/kvm")
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return TCG, "there is no /dev/kvm"
	case errors.Is(err, fs.ErrPermission):
		return TCG, "/dev/kvm may not be opened; add yourself to the group kvm"
	case err != nil:
		return TCG, "/dev/kvm does not open: " + err.Error()
	}
	_ = f.Close()
	if !hasVirtualization(root) {
		return TCG, "/dev/kvm is there, but nothing says that it is backed by VMX or SVM (no kvm_intel, no kvm_amd, no CPU flag)"
	}
	if err := probe(); err != nil {
		return TCG, "/dev/kvm is there, but " + err.Error()
	}
	return KVM, "KVM ran a test guest"
}

// hasVirtualization reports whether the CPU, or the KVM module that is loaded, has VMX or SVM. With only kvm_pvm loaded
// /dev/kvm is that module's, whatever the CPU has.
func hasVirtualization(root string) bool {
	loaded := func(module string) bool {
		_, err := os.Stat(filepath.Join(root, "sys/module", module))
		return err == nil
	}
	if loaded("kvm_intel") || loaded("kvm_amd") {
		return true
	}
	if loaded("kvm_pvm") {
		return false
	}
	text, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	return err == nil && hasFlag(text)
}

// hasFlag reports whether the CPU flags in the text of /proc/cpuinfo hold vmx or svm.
func hasFlag(cpuinfo []byte) bool {
	lines := bufio.NewScanner(bytes.NewReader(cpuinfo))
	lines.Buffer(nil, len(cpuinfo)+1)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for flag := range strings.FieldsSeq(value) {
			if flag == "vmx" || flag == "svm" {
				return true
			}
		}
	}
	return false
}
