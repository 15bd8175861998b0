package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/microvm"
)

const gib = 1 << 30

// home returns an environment with everything under one new directory, and the path of its configuration file.
func home(t *testing.T, text string) (env func(string) string, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, ".config", "banger", "config.toml")
	if text != "" {
		write(t, file, text)
	}
	return environ("HOME", dir), file
}

func environ(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadWithoutFile(t *testing.T) {
	t.Parallel()
	env, file := home(t, "")
	c, err := Load(env)
	if err != nil {
		t.Fatal(err)
	}
	if c.File != file || c.FileRead {
		t.Errorf("file %q read %v, want %q not read", c.File, c.FileRead, file)
	}
	if err := c.VM.Spec().Validate(); err != nil {
		t.Errorf("the defaults are not a legal specification: %v", err)
	}
	if c.VM.VCPUs.From != Host || c.VM.Image.From != BuiltIn {
		t.Errorf("sources %q and %q", c.VM.VCPUs.From, c.VM.Image.From)
	}
}

func TestLoadSetsEveryKey(t *testing.T) {
	t.Parallel()
	env, _ := home(t, `
daemon.log_level = "debug"
daemon.memory_overcommit = "refuse"
[vm_defaults]
vcpu = 3
memory = "1GiB"
disk_size = 4294967296
image = "alpine-3"
kernel = "mainline"
init = "systemd"
net = "none"
backend = "qemu"
cpu_weight = 50
io_weight = 200
[network]
allow = ["10.1.0.0/16", "192.168.1.5", "fd00::/8"]
`)
	c, err := Load(env)
	if err != nil {
		t.Fatal(err)
	}
	want := microvm.Spec{
		VCPUs: 3, Memory: gib, DiskSize: 4 * gib, Image: "alpine-3", Kernel: "mainline",
		Init: microvm.InitSystemd, Net: microvm.NetNone, Backend: "qemu",
	}
	got := c.VM.Spec()
	if got.VCPUs != want.VCPUs || got.Memory != want.Memory || got.DiskSize != want.DiskSize || got.Image != want.Image ||
		got.Kernel != want.Kernel || got.Init != want.Init || got.Net != want.Net || got.Backend != want.Backend {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got.Weights != (microvm.Weights{CPU: 50, IO: 200}) {
		t.Errorf("weights %+v", got.Weights)
	}
	nets := []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.168.1.5/32"), netip.MustParsePrefix("fd00::/8"),
	}
	if !slices.Equal(c.Network.Allow.Value, nets) || c.Network.Allow.From != File {
		t.Errorf("allow = %v", c.Network.Allow)
	}
	if c.Daemon.LogLevel != (Value[slog.Level]{slog.LevelDebug, File}) {
		t.Errorf("log level = %v", c.Daemon.LogLevel)
	}
	if c.Daemon.MemoryOvercommit != (Value[Overcommit]{OvercommitRefuse, File}) {
		t.Errorf("memory overcommit = %v", c.Daemon.MemoryOvercommit)
	}
	if c.VM.Memory.From != File || !c.FileRead {
		t.Errorf("source %q, file read %v", c.VM.Memory.From, c.FileRead)
	}
	c.VM.Memory.Override(2 * gib)
	if c.VM.Memory != (Value[int64]{2 * gib, Flag}) {
		t.Errorf("overridden memory = %v", c.VM.Memory)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		want, hint string // parts of the message, after the file's name, and of the hint
	}{
		{"syntax", "[vm_defaults]\nvcpu = = 3\n", ":2:8: ", ""},
		{"duplicate key", "[vm_defaults]\nvcpu = 1\nvcpu = 2\n", ":3:", ""},
		{"unknown key", "[vm_defaults]\nvcpu = 1\n\nvcpus = 2\n", ":4: unknown key vm_defaults.vcpus", "vcpu"},
		{"unknown section", "# hello\n[nope]\na = 1\n", ":3: unknown key nope.a", "[network]"},
		{"unknown empty section", "\n[nope]\n", ":2: unknown key nope", "[vm_defaults]"},
		{"unknown list of tables", "[[vm_defaults.vcpu2]]\nx = 1\n", ":1: unknown key vm_defaults.vcpu2", ""},
		{"quoted dot", `"vm_defaults.vcpu" = 1`, `:1: unknown key "vm_defaults.vcpu"`, ""},
		{"section as value", "network = 1", ":1: unknown key network", "allow"},
		{"key as section", "[vm_defaults.image]\nname = 'x'\n", ":2: unknown key vm_defaults.image.name", ""},
		{"vcpu zero", "[vm_defaults]\nvcpu = 0\n", ":2: vm_defaults.vcpu: bad value 0", "1 to 32"},
		{"weight zero", "[vm_defaults]\ncpu_weight = 0\n", ":2: vm_defaults.cpu_weight: bad value 0", "1 to 10000"},
		{"weight text", "[vm_defaults]\nio_weight = 'high'\n", `:2: vm_defaults.io_weight: bad value "high"`, "whole number"},
		{"vcpu text", "[vm_defaults]\nvcpu = '2'\n", `:2: vm_defaults.vcpu: bad value "2"`, "whole number"},
		{"inline table", "\nvm_defaults = { vcpu = 99 }\n", ":2: vm_defaults.vcpu: bad value 99", ""},
		{"dotted key", "a = 1\nvm_defaults.vcpu = 99\n", ":1: unknown key a", ""},
		{"memory unit", "[vm_defaults]\nmemory = '1 GB'\n", `:2: vm_defaults.memory: bad size "1 GB"`, "512M"},
		{"memory small", "[vm_defaults]\nmemory = '1M'\n", `:2: vm_defaults.memory: bad value "1M"`, "128MiB"},
		{"memory step", "[vm_defaults]\nmemory = 536870913\n", ":2: vm_defaults.memory: bad value", "1MiB"},
		{"memory negative", "[vm_defaults]\nmemory = -1\n", ":2: vm_defaults.memory: bad value -1", ""},
		{"disk huge", "[vm_defaults]\ndisk_size = '17T'\n", ":2: vm_defaults.disk_size: bad value", "16TiB"},
		{"image", "[vm_defaults]\nimage = 'A b'\n", `:2: vm_defaults.image: bad value "A b"`, "alpine:3.20"},
		{"mirror", "[images]\nmirrors = ['docker.io']\n", `:2: images.mirrors: bad value "docker.io"`, "docker.io=mirror"},
		{"catalog", "[images]\ncatalog = 'http://example.com/x'\n", ":2: images.catalog: bad value", "https"},
		{"catalog unpinned", "[images]\ncatalog = 'https://example.com/x'\n", "catalog_sha256 is not set", "sha256sum"},
		{"catalog sum", "[images]\ncatalog_sha256 = 'abc'\n", ":2: images.catalog_sha256: bad value", "64"},
		{"init", "[vm_defaults]\ninit = 'openrc'\n", `:2: vm_defaults.init: bad value "openrc"`, "systemd"},
		{"backend", "[vm_defaults]\nbackend = 'xen'\n", `:2: vm_defaults.backend: bad value "xen"`, "qemu"},
		{"allow text", "[network]\nallow = '10.0.0.0/8'\n", ":2: network.allow: bad value", "list"},
		{"allow item", "[network]\nallow = ['10.0.0.0/8', 'example.com']\n", `:2: network.allow: bad value "example.com"`, "list"},
		{"allow host bits", "[network]\nallow = ['10.1.2.3/8']\n", `:2: network.allow: bad value "10.1.2.3/8"`, "10.0.0.0/8"},
		{"allow zone", "[network]\nallow = ['fe80::1%eth0']\n", ":2: network.allow: bad value", "list"},
		{"kernel catalogue", "[kernels]\ncatalog = 'x.json'\n", ":2: kernels.catalog: bad value", "absolute"},
		{"level", "[daemon]\nlog_level = 'loud'\n", `:2: daemon.log_level: bad value "loud"`, "warn"},
		{"overcommit", "[daemon]\nmemory_overcommit = true", `:2: daemon.memory_overcommit: bad value true`, "refuse"},
		{"too large", "#" + strings.Repeat("x", maxFile), "is larger than 1MiB", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			env, file := home(t, tc.text)
			_, err := Load(env)
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("error %v, want an invalid one", err)
			}
			if !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not hold %q and %q", err, file, tc.want)
			}
			if !strings.Contains(fault.HintOf(err), tc.hint) {
				t.Errorf("hint %q does not hold %q", fault.HintOf(err), tc.hint)
			}
		})
	}
}

func TestLoadKnownEmptySection(t *testing.T) {
	t.Parallel()
	env, _ := home(t, "[vm_defaults]\n[network]\n[daemon]\n")
	if _, err := Load(env); err != nil {
		t.Errorf("empty sections are refused: %v", err)
	}
}

func TestLoadNamedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	named := filepath.Join(dir, "other.toml")
	write(t, named, "vm_defaults.vcpu = 2")
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, file string
		kind       fault.Kind
		ok         bool
	}{
		{name: "there", file: named, ok: true},
		{name: "null device", file: os.DevNull, ok: true},
		{name: "missing", file: named + "x", kind: fault.NotFound},
		{name: "directory", file: dir, kind: fault.Invalid},
		{name: "pipe", file: pipe, kind: fault.Invalid},
		{name: "in a file", file: named + "/x", kind: fault.Internal},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := Load(environ("HOME", dir, "BANGER_CONFIG", tc.file))
			if (err == nil) != tc.ok || !tc.ok && fault.KindOf(err) != tc.kind {
				t.Fatalf("error %v, want ok %v, kind %v", err, tc.ok, tc.kind)
			}
			if tc.file == named && c.VM.VCPUs.Value != 2 {
				t.Errorf("the named file was not used: %+v", c.VM.VCPUs)
			}
		})
	}
}

func TestLoadUnreadable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may read every file")
	}
	env, file := home(t, "# nothing")
	if err := os.Chmod(file, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(env); !fault.Is(err, fault.Denied) {
		t.Errorf("error %v, want denied", err)
	}
}

func TestHostDefaults(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		cpus   int
		ram    int64
		vcpus  int
		memory int64
	}{
		{1, 1 * gib, 1, gib / 2},
		{2, 4 * gib, 1, gib / 2},
		{4, 0, 1, gib / 2},
		{8, 16 * gib, 2, 2 * gib},
		{12, 24*gib - 300<<20, 3, 3*gib - 64<<20},
		{64, 256 * gib, 4, 8 * gib},
	} {
		d := host{cpus: tc.cpus, memory: tc.ram}.defaults()
		if d.VCPUs.Value != tc.vcpus || d.Memory.Value != tc.memory {
			t.Errorf("%d CPUs and %d bytes: %d vCPUs and %d bytes, want %d and %d",
				tc.cpus, tc.ram, d.VCPUs.Value, d.Memory.Value, tc.vcpus, tc.memory)
		}
		if err := d.Spec().Validate(); err != nil {
			t.Errorf("%d CPUs and %d bytes: %v", tc.cpus, tc.ram, err)
		}
	}
}

// FuzzApply: whatever a file holds, it is taken or refused with a line, and what is taken is legal.
func FuzzApply(f *testing.F) {
	for _, seed := range []string{
		"", "[vm_defaults]\nvcpu = 2\nmemory = '1G'\n", "vm_defaults = { image = 'x' }", "[network]\nallow = ['::/0', '1.2.3.4']",
		"[daemon]\nlog_level = 'warn'", "[[a]]\nb = 1", "\"a.b\".'c' = 1", "a = [[[[1]]]]", "[vm_defaults]\nvcpu = 1979-05-27T07:32:00Z", "a.b.c = inf",
		"\"\" = 1", "[network]\nallow = [1, {a = 1}]",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := Config{File: "config.toml", VM: host{cpus: 4, memory: gib}.defaults()}
		err := c.apply(text)
		if err == nil {
			if err := c.VM.Spec().Validate(); err != nil {
				t.Errorf("an illegal default was accepted: %v", err)
			}
			return
		}
		if !fault.Is(err, fault.Invalid) || !strings.HasPrefix(err.Error(), "config.toml:") {
			t.Errorf("error %q does not say where", err)
		}
	})
}
