// Package config owns banger's configuration: the configuration file, the defaults that depend on the host, and where
// banger keeps its files ([Paths]). Everything is decided once by [Load]; the result is a value that nobody changes.
//
// It does not own the names of the files that a VM's monitor and its VMM make inside the VM's two directories, nor what
// is in any file but the configuration.
package config

import (
	"log/slog"
	"net/netip"
	"os"

	"banger/internal/microvm"
)

// What a VM gets if nobody says anything else.
const (
	DefaultImage    = "debian-bookworm"
	DefaultKernel   = "debian-cloud"
	DefaultDiskSize = 8 << 30 // bytes; sparse, so it costs nothing until it is used
)

// Source says where a value comes from.
type Source string

// The sources, weakest first.
const (
	BuiltIn Source = "built-in default"
	Host    Source = "host default" // depends on the size of the host
	File    Source = "config file"
	Flag    Source = "flag"
)

// Value is a setting and where it comes from.
type Value[T any] struct {
	Value T
	From  Source
}

// Override replaces the value by one that a flag or a request gave.
func (v *Value[T]) Override(value T) { *v = Value[T]{value, Flag} }

// Config is the whole configuration.
type Config struct {
	Paths    Paths
	File     string // the configuration file; it need not exist
	FileRead bool   // the file exists
	VM       VMDefaults
	Network  Network
	Images   Images
	Kernels  Kernels
	Template Templates
	Home     Home
	Daemon   Daemon
}

// VMDefaults is what a VM gets for all that a request leaves open.
type VMDefaults struct {
	VCPUs    Value[int]
	Memory   Value[int64] // bytes
	DiskSize Value[int64] // bytes
	Image    Value[string]
	Kernel   Value[string]
	Init     Value[microvm.Init]
	Net      Value[microvm.Net]
	Backend  Value[string]
	// Weights from microvm.MinWeight to MaxWeight.
	CPUWeight Value[int]
	IOWeight  Value[int]
}

// Spec returns the defaults as a specification.
func (d VMDefaults) Spec() microvm.Spec {
	return microvm.Spec{
		VCPUs:    d.VCPUs.Value,
		Memory:   d.Memory.Value,
		DiskSize: d.DiskSize.Value,
		Image:    d.Image.Value,
		Kernel:   d.Kernel.Value,
		Init:     d.Init.Value,
		Net:      d.Net.Value,
		Backend:  d.Backend.Value,
		Weights:  microvm.Weights{CPU: d.CPUWeight.Value, IO: d.IOWeight.Value},
	}
}

// Network is what holds for the network of every VM.
type Network struct {
	// Allow is what guests may reach although the default policy denies it. Masked and in the order of the file.
	Allow Value[[]netip.Prefix]
}

// Images says where images come from.
type Images struct {
	// Mirrors are asked before a registry, by the registry's name as people write it ("docker.io").
	Mirrors Value[map[string][]string]
	// Catalog is the absolute path or https URL of a catalogue that takes the place of the built-in one; empty: none does.
	Catalog       Value[string]
	CatalogSHA256 Value[string] // of the catalogue, in hexadecimal; required for a URL
}

// Kernels says where kernels come from.
type Kernels struct {
	// Catalog is the absolute path of a file with entries that go over those of the built-in catalogue; empty: none.
	Catalog Value[string]
}

// Templates says how VMs are restored instead of booted.
type Templates struct {
	Enabled Value[bool]
	MaxSize Value[int64] // bytes of disk that all of them may take up
	Ready   Value[int]   // restored VMs that wait for whoever wants one next, per template in use
	// ReadyMemory is how many bytes of memory all those that wait may take up.
	ReadyMemory Value[int64]
}

// Daemon is how the daemon itself behaves.
type Daemon struct {
	LogLevel Value[slog.Level]
	// MemoryOvercommit decides what a start does that would give running VMs more memory together than the host has.
	MemoryOvercommit Value[Overcommit]
}

// Overcommit is a policy for promising more than there is.
type Overcommit string

// The policies. Guests seldom touch all of their memory, and idle memory can be swapped out: hence the default is to warn.
const (
	OvercommitRefuse Overcommit = "refuse"
	OvercommitWarn   Overcommit = "warn"
	OvercommitAllow  Overcommit = "allow"
)

// HostMemory returns the memory of this host in bytes, or 0 if it is not known.
func HostMemory() int64 { return totalMemory() }

// Load reads the configuration. Variables of the environment come from env ([os.Getenv]). A configuration file that
// does not exist is the same as an empty one, unless BANGER_CONFIG names it; one that cannot be read, has an unknown
// key or a bad value is an error that names file, line and key.
func Load(env func(string) string) (Config, error) {
	return load(env, host{cpus: numCPU(), memory: totalMemory(), uid: os.Geteuid(), userRuntime: "/run/user", temp: "/tmp"})
}

func load(env func(string) string, h host) (Config, error) {
	paths, err := locate(env, h)
	if err != nil {
		return Config{}, err
	}
	c := Config{Paths: paths, VM: h.defaults()}
	c.Network.Allow.From = BuiltIn
	c.Images.Mirrors.From, c.Images.Catalog.From = BuiltIn, BuiltIn
	c.Images.CatalogSHA256.From = BuiltIn
	c.Kernels.Catalog.From = BuiltIn
	c.Home.Files.From, c.Home.GitIdentity = BuiltIn, Value[bool]{true, BuiltIn}
	c.Daemon.LogLevel = Value[slog.Level]{slog.LevelInfo, BuiltIn}
	c.Template = Templates{Enabled: Value[bool]{true, BuiltIn}, MaxSize: Value[int64]{10 << 30, BuiltIn}}
	c.Template.Ready, c.Template.ReadyMemory = Value[int]{0, BuiltIn}, Value[int64]{1 << 30, BuiltIn}
	c.Daemon.MemoryOvercommit = Value[Overcommit]{OvercommitWarn, BuiltIn}
	file, explicit, err := locateFile(env)
	if err != nil {
		return Config{}, err
	}
	c.File = file
	text, err := readFile(file, explicit)
	if err != nil {
		return Config{}, err
	}
	if text == nil {
		return c, nil
	}
	c.FileRead = true
	if err := c.apply(text); err != nil {
		return Config{}, err
	}
	return c, nil
}
