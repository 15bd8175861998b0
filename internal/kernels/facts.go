package kernels

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/fault"
	"banger/internal/initramfs"
	"banger/internal/kernelimage"
)

// Support is whether a kernel has something.
type Support string

// The kinds of support.
const (
	BuiltIn Support = "built-in"
	Module  Support = "module"
	Missing Support = "missing"
	Unknown Support = "unknown" // it has no configuration that would tell
)

// Feature is something that guests may need of their kernel.
type Feature struct {
	Name    string
	Support Support
}

// Fitness is whether a kernel can boot on a backend.
type Fitness struct {
	Backend  string
	Problems []string // why it can't; empty: it can, as far as can be told
	Notes    []string // what works less well, or can't be told
}

// Facts are what is known about a kernel.
type Facts struct {
	PVH      bool // the unpacked kernel can be entered directly
	Features []Feature
	Backends []Fitness
}

// requirement is something that a kernel should have.
type requirement struct {
	name   string
	option string // of its configuration
	module string // empty: can only be built in
	needed string // backends that can't do without, or "all"; empty: only something is lost then
	lost   string // what
}

func requirements() []requirement {
	return []requirement{
		{"initramfs", "BLK_DEV_INITRD", "", "all", ""},
		{"devtmpfs", "DEVTMPFS", "", "all", ""},
		{"tmpfs", "TMPFS", "", "all", ""},
		{"ext4", "EXT4_FS", "ext4", "all", ""},
		{"overlay", "OVERLAY_FS", "overlay", "all", ""},
		{"virtio-mmio", "VIRTIO_MMIO", "virtio_mmio", "all", ""},
		{"virtio-blk", "VIRTIO_BLK", "virtio_blk", "all", ""},
		{"virtio-console", "VIRTIO_CONSOLE", "virtio_console", "qemu", ""},
		{"vsock", "VIRTIO_VSOCKETS", "vmw_vsock_virtio_transport", "firecracker", ""},
		{"acpi", "ACPI", "", "qemu", ""}, // its microvm machine tells of the devices by ACPI only
		{"mmio on the command line", "VIRTIO_MMIO_CMDLINE_DEVICES", "", "", ""},
		{"virtio-net", "VIRTIO_NET", "virtio_net", "", "no network"},
		{"virtio-rng", "HW_RANDOM_VIRTIO", "virtio_rng", "", "little entropy early on"},
		{"serial console", "SERIAL_8250_CONSOLE", "", "", "nothing in the console log"},
	}
}

// Facts returns what is known about a kernel: from its configuration, its modules and its image.
func (s *Store) Facts(k Kernel) (Facts, error) {
	s.inspected.mu.Lock()
	facts, ok := s.inspected.known[k.dir+k.Digest]
	s.inspected.mu.Unlock()
	if ok {
		return facts, nil
	}
	facts, err := inspect(k)
	if err != nil {
		return Facts{}, fault.New(fault.Corrupt, "look into kernel %s: %w", k.Name, err).
			WithHint("delete it and get it again: banger kernel delete %s", k.Name)
	}
	s.inspected.mu.Lock()
	defer s.inspected.mu.Unlock()
	s.inspected.known[k.dir+k.Digest] = facts
	return facts, nil
}

func inspect(k Kernel) (Facts, error) {
	var f Facts
	var config kernelimage.Config
	if k.ConfigPath != "" {
		text, err := os.ReadFile(k.ConfigPath)
		if err != nil {
			return f, err
		}
		config = kernelimage.ParseConfig(text)
	}
	var loadable, builtin map[string]bool
	if k.bootModules() != "" {
		var err error
		if loadable, builtin, err = initramfs.Have(k.bootModules()); err != nil {
			return f, err
		}
	}
	if k.ELFPath != "" {
		elf, err := os.Open(k.ELFPath)
		if err != nil {
			return f, err
		}
		defer elf.Close() //nolint:errcheck // read only
		f.PVH = kernelimage.HasPVH(elf)
	}
	have := map[string]Support{}
	for _, r := range requirements() {
		have[r.name] = support(r, config, loadable, builtin)
		f.Features = append(f.Features, Feature{r.name, have[r.name]})
	}
	for _, backend := range []string{"qemu", "firecracker"} {
		f.Backends = append(f.Backends, fitness(backend, k, f.PVH, have))
	}
	return f, nil
}

func support(r requirement, config kernelimage.Config, loadable, builtin map[string]bool) Support {
	value := config[r.option]
	switch {
	case value == "y", r.module != "" && builtin[r.module]:
		return BuiltIn
	case r.module != "" && loadable[r.module]:
		return Module
	case config != nil, r.module != "" && builtin != nil:
		return Missing // "m" without the module's file is missing, too
	}
	return Unknown
}

func fitness(backend string, k Kernel, pvh bool, have map[string]Support) Fitness {
	f := Fitness{Backend: backend}
	var unknown []string
	for _, r := range requirements() {
		needed := r.needed == "all" || r.needed == backend
		switch {
		case have[r.name] == Missing && needed:
			f.Problems = append(f.Problems, "it has no "+r.name+" (CONFIG_"+r.option+")")
		case have[r.name] == Missing && r.lost != "":
			f.Notes = append(f.Notes, "it has no "+r.name+" (CONFIG_"+r.option+"): "+r.lost)
		case have[r.name] == Unknown && needed:
			unknown = append(unknown, r.name)
		}
	}
	switch {
	case backend == "qemu" && k.ImagePath == "" && !pvh:
		f.Problems = append(f.Problems, "it is a vmlinux without a PVH entry (CONFIG_PVH), which only the bzImage could replace")
	case backend == "qemu" && k.ELFPath == "":
		f.Notes = append(f.Notes, "it could not be unpacked here: the guest does it at each boot")
	case backend == "qemu" && !pvh:
		f.Notes = append(f.Notes, "it has no PVH entry (CONFIG_PVH): the guest unpacks the bzImage at each boot")
	case backend == "firecracker" && k.ELFPath == "":
		f.Problems = append(f.Problems, "it could not be unpacked, and firecracker boots only a vmlinux")
	}
	if backend == "firecracker" && have["acpi"] == Missing && have["mmio on the command line"] == Missing {
		f.Problems = append(f.Problems, "it finds devices neither by ACPI nor by the command line (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES)")
	}
	if len(unknown) > 0 {
		f.Notes = append(f.Notes, "it has no configuration, so nobody knows whether it has "+strings.Join(unknown, ", "))
	}
	return f
}

// BootPath returns the file of a kernel that a backend is to boot. A kernel that can't boot there is fault.Unsupported,
// with all that it lacks.
func (s *Store) BootPath(k Kernel, backend string) (string, error) {
	facts, err := s.Facts(k)
	if err != nil {
		return "", err
	}
	for _, f := range facts.Backends {
		if f.Backend == backend && len(f.Problems) > 0 {
			return "", fault.New(fault.Unsupported, "kernel %s can't boot on %s: %s", k.Name, backend, strings.Join(f.Problems, "; ")).
				WithHint("choose another with --kernel; see what it has: banger kernel show %s", k.Name)
		}
	}
	// Unpacking itself takes a guest long under software emulation.
	if k.ELFPath != "" && (facts.PVH || k.ImagePath == "" || backend == "firecracker") {
		return k.ELFPath, nil
	}
	return k.ImagePath, nil
}

// bootModules returns the directory with the modules that an initramfs may need; empty if the kernel has none.
func (k Kernel) bootModules() string {
	dir := filepath.Join(k.dir, bootDir, k.Release)
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return dir
}

// wantedModules returns which of the modules for booting are files in a directory of modules.
func wantedModules(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	loadable, _, err := initramfs.Have(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range bootModules() {
		if loadable[name] {
			out = append(out, name)
		}
	}
	return out, nil
}
