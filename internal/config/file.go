package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"banger/internal/fault"
	"banger/internal/microvm"
)

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// readFile returns nil if there is no such file and it was not asked for by name.
func readFile(name string, explicit bool) ([]byte, error) {
	info, err := os.Stat(name) // first: opening a pipe would wait for its writer
	if errors.Is(err, fs.ErrNotExist) {
		if explicit {
			return nil, fault.New(fault.NotFound, "no config file %s", name).WithHint("BANGER_CONFIG names it: create it or unset the variable")
		}
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(err)
	}
	if kind := info.Mode().Type(); kind != 0 && kind != fs.ModeDevice|fs.ModeCharDevice { // /dev/null is fine
		return nil, fault.New(fault.Invalid, "read config: %s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close() //nolint:errcheck // only read from
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, unreadable(err)
	}
	if len(text) > maxFile {
		return nil, fault.New(fault.Invalid, "read config: %s is larger than %s", name, microvm.FormatSize(maxFile))
	}
	return text, nil
}

func unreadable(err error) error {
	kind := fault.Internal
	if errors.Is(err, fs.ErrPermission) {
		kind = fault.Denied
	}
	return fault.New(kind, "read config: %w", err).WithHint("make the file readable, or name another one in BANGER_CONFIG")
}

// apply sets what the text of the configuration file says.
func (c *Config) apply(text []byte) error {
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := bad.Position()
			return fault.New(fault.Invalid, "%s:%d:%d: %s", c.File, line, column, strings.TrimPrefix(bad.Error(), "toml: "))
		}
		return fault.New(fault.Invalid, "%s: %w", c.File, err)
	}
	known := c.settings()
	leaves := flatten("", tree)
	for _, key := range slices.Sorted(maps.Keys(leaves)) {
		set, ok := known[key]
		if !ok {
			return fault.New(fault.Invalid, "%s:%d: unknown key %s", c.File, lineOf(text, key), key).
				WithHint("%s", knownKeys(known, key))
		}
		if err := set(leaves[key]); err != nil {
			bad := fault.New(fault.Invalid, "%s:%d: %s: %w", c.File, lineOf(text, key), key, err)
			return bad.WithHint("%s", fault.HintOf(err))
		}
	}
	if err := c.Images.check(); err != nil {
		return fault.New(fault.Invalid, "%s: %w", c.File, err).WithHint("%s", fault.HintOf(err))
	}
	return nil
}

// settings is the table of every key that the configuration file may have.
func (c *Config) settings() map[string]func(any) error {
	vm := &c.VM
	return map[string]func(any) error{
		"vm_defaults.vcpu":         setting(&vm.VCPUs, vcpus),
		"vm_defaults.memory":       setting(&vm.Memory, size(microvm.MinMemory, microvm.MaxMemory, 1<<20)),
		"vm_defaults.disk_size":    setting(&vm.DiskSize, size(microvm.MinDiskSize, microvm.MaxDiskSize, 4096)),
		"vm_defaults.image":        setting(&vm.Image, imageName),
		"vm_defaults.kernel":       setting(&vm.Kernel, name),
		"vm_defaults.init":         setting(&vm.Init, oneOf(microvm.InitAuto, microvm.InitAgent, microvm.InitSystemd)),
		"vm_defaults.net":          setting(&vm.Net, oneOf(microvm.NetUser, microvm.NetNone)),
		"vm_defaults.backend":      setting(&vm.Backend, oneOf("auto", "qemu")),
		"images.mirrors":           setting(&c.Images.Mirrors, mirrors),
		"images.catalog":           setting(&c.Images.Catalog, location),
		"images.catalog_sha256":    setting(&c.Images.CatalogSHA256, sha256Hex),
		"vm_defaults.cpu_weight":   setting(&vm.CPUWeight, weight),
		"vm_defaults.io_weight":    setting(&vm.IOWeight, weight),
		"kernels.catalog":          setting(&c.Kernels.Catalog, absolutePath),
		"templates.enabled":        setting(&c.Template.Enabled, boolean),
		"templates.max_size":       setting(&c.Template.MaxSize, size(0, 1<<50, 1)),
		"templates.ready":          setting(&c.Template.Ready, ready),
		"templates.ready_memory":   setting(&c.Template.ReadyMemory, size(0, 1<<50, 1)),
		"network.allow":            setting(&c.Network.Allow, prefixes),
		"file_sync":                setting(&c.Home.Files, fileSyncs),
		"home.git_identity":        setting(&c.Home.GitIdentity, boolean),
		"daemon.log_level":         setting(&c.Daemon.LogLevel, level),
		"daemon.memory_overcommit": setting(&c.Daemon.MemoryOvercommit, oneOf(OvercommitRefuse, OvercommitWarn, OvercommitAllow)),
	}
}

func setting[T any](to *Value[T], parse func(any) (T, error)) func(any) error {
	return func(raw any) error {
		v, err := parse(raw)
		if err == nil {
			*to = Value[T]{v, File}
		}
		return err
	}
}

func vcpus(raw any) (int, error) {
	n, ok := raw.(int64)
	if !ok || n < 1 || n > microvm.MaxVCPUs {
		return 0, bad(raw, "a whole number from 1 to %d", microvm.MaxVCPUs)
	}
	return int(n), nil
}

func weight(raw any) (int, error) {
	n, ok := raw.(int64)
	if !ok || n < microvm.MinWeight || n > microvm.MaxWeight {
		return 0, bad(raw, "a whole number from %d to %d", microvm.MinWeight, microvm.MaxWeight)
	}
	return int(n), nil
}

// maxReady bounds the spares of one template: each takes up some tens of MiB.
const maxReady = 16

func ready(raw any) (int, error) {
	n, ok := raw.(int64)
	if !ok || n < 0 || n > maxReady {
		return 0, bad(raw, "a whole number from 0 to %d", maxReady)
	}
	return int(n), nil
}

// size takes sizes from least to most bytes that are multiples of step.
func size(least, most, step int64) func(any) (int64, error) {
	return func(raw any) (int64, error) {
		n, ok := raw.(int64)
		if text, isText := raw.(string); isText {
			var err error
			if n, err = microvm.ParseSize(text); err != nil {
				return 0, err
			}
			ok = true
		}
		if !ok || n < least || n > most || n%step != 0 {
			return 0, bad(raw, "a size from %s to %s in steps of %s, such as \"1GiB\"",
				microvm.FormatSize(least), microvm.FormatSize(most), microvm.FormatSize(step))
		}
		return n, nil
	}
}

func name(raw any) (string, error) {
	text, ok := raw.(string)
	if !ok || microvm.ValidateName(text) != nil {
		return "", bad(raw, "a name: 1 to %d characters of a-z, 0-9 and -, with no - at an edge", microvm.MaxNameLength)
	}
	return text, nil
}

func absolutePath(raw any) (string, error) {
	text, ok := raw.(string)
	if !ok || !filepath.IsAbs(text) {
		return "", bad(raw, "an absolute path")
	}
	return text, nil
}

func oneOf[T ~string](values ...T) func(any) (T, error) {
	return func(raw any) (T, error) {
		text, ok := raw.(string)
		if !ok || !slices.Contains(values, T(text)) {
			return "", bad(raw, "one of %q", values)
		}
		return T(text), nil
	}
}

func prefixes(raw any) ([]netip.Prefix, error) {
	const want = "a list of networks, such as [\"10.1.0.0/16\", \"192.168.1.5\"]"
	list, ok := raw.([]any)
	if !ok {
		return nil, bad(raw, want)
	}
	nets := make([]netip.Prefix, 0, len(list))
	for _, item := range list {
		text, _ := item.(string)
		p, err := netip.ParsePrefix(text)
		if a, e := netip.ParseAddr(text); e == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, bad(item, want)
		}
		if p != p.Masked() {
			return nil, bad(item, "a network, not an address in one: %s", p.Masked())
		}
		nets = append(nets, p)
	}
	return nets, nil
}

func level(raw any) (slog.Level, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	text, _ := raw.(string)
	l, ok := levels[text]
	if !ok {
		return 0, bad(raw, "one of debug, info, warn, error")
	}
	return l, nil
}

func bad(raw any, want string, args ...any) error {
	text := fmt.Sprintf("%#v", raw)
	if s, ok := raw.(string); ok {
		text = fmt.Sprintf("%q", s)
	}
	if len(text) > 80 {
		text = text[:80] + "..."
	}
	return fault.New(fault.Invalid, "bad value %s", text).WithHint("write "+want, args...)
}

// knownKeys says what may stand where the unknown key stands.
func knownKeys[T any](known map[string]T, key string) string {
	section, _, _ := strings.Cut(key, ".")
	var keys, sections []string
	for _, k := range slices.Sorted(maps.Keys(known)) {
		in, rest, _ := strings.Cut(k, ".")
		if in == section {
			keys = append(keys, rest)
		}
		if !slices.Contains(sections, "["+in+"]") {
			sections = append(sections, "["+in+"]")
		}
	}
	if len(keys) > 0 {
		return "the keys of [" + section + "] are " + strings.Join(keys, ", ")
	}
	return "the sections are " + strings.Join(sections, ", ")
}
