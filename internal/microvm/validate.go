package microvm

import (
	"math"
	"strconv"
	"strings"
	"time"

	"banger/internal/fault"
)

// MaxNameLength is the longest legal name of a VM in bytes: a DNS label (RFC 1035).
const MaxNameLength = 63

// ValidateName checks the name of a VM: a-z, 0-9 and -, 1 to 63 characters, no hyphen at an edge. It never changes a name
// to make it fit.
func ValidateName(name string) error {
	const hint = "use 1 to 63 characters of a-z, 0-9 and -, with no - at an edge"
	bad := func(why string) error {
		return fault.New(fault.Invalid, "bad VM name %q: %s", clip(name), why).WithHint(hint)
	}
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > MaxNameLength:
		return bad("it is longer than 63 characters")
	case name[0] == '-' || name[len(name)-1] == '-':
		return bad("it begins or ends with a hyphen")
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return bad("it holds the character " + strconv.QuoteRune(c))
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// Limits of a VM.
const (
	MaxVCPUs    = 32        // what QEMU's microvm and Firecracker both take
	MinMemory   = 128 << 20 // bytes; below it a stock kernel and systemd do not boot
	MaxMemory   = 1 << 40   // bytes
	MinDiskSize = 64 << 20  // bytes; room for an ext4 with a journal
	MaxDiskSize = 16 << 40  // bytes; the limit of ext4 with 4 KiB blocks and 32-bit block numbers
	memoryStep  = 1 << 20   // bytes; VMMs take whole MiB

	MinWeight     = 1 // of CPU and disks, as with Linux's cgroups
	DefaultWeight = 100
	MaxWeight     = 10000
)

// Validate checks a specification and fills nothing in.
func (s Spec) Validate() error {
	switch {
	case s.VCPUs < 1 || s.VCPUs > MaxVCPUs:
		return fault.New(fault.Invalid, "bad number of vCPUs %d", s.VCPUs).WithHint("use 1 to %d", MaxVCPUs)
	case s.Memory < MinMemory || s.Memory > MaxMemory:
		return fault.New(fault.Invalid, "bad memory size %s", FormatSize(s.Memory)).
			WithHint("use %s to %s", FormatSize(MinMemory), FormatSize(MaxMemory))
	case s.Memory%memoryStep != 0:
		return fault.New(fault.Invalid, "bad memory size %d: not a whole number of MiB", s.Memory)
	case s.DiskSize < MinDiskSize || s.DiskSize > MaxDiskSize:
		return fault.New(fault.Invalid, "bad disk size %s", FormatSize(s.DiskSize)).
			WithHint("use %s to %s", FormatSize(MinDiskSize), FormatSize(MaxDiskSize))
	case s.DiskSize%4096 != 0:
		return fault.New(fault.Invalid, "bad disk size %d: not a multiple of 4096", s.DiskSize)
	case s.Init != InitAuto && s.Init != InitAgent && s.Init != InitSystemd:
		return fault.New(fault.Invalid, "bad init %q", s.Init).WithHint("use auto, agent or systemd")
	case s.Net != NetUser && s.Net != NetNone:
		return fault.New(fault.Invalid, "bad network %q", s.Net).WithHint("use user or none")
	case s.Weights.CPU < 0 || s.Weights.CPU > MaxWeight || s.Weights.IO < 0 || s.Weights.IO > MaxWeight:
		return fault.New(fault.Invalid, "bad weight of CPU or disks %d, %d", s.Weights.CPU, s.Weights.IO).
			WithHint("use %d to %d; %d is the default", MinWeight, MaxWeight, DefaultWeight)
	case s.AutoSuspend < 0 || s.AutoSuspend > 0 && s.AutoSuspend < time.Second:
		return fault.New(fault.Invalid, "bad time without activity %s until the VM is suspended", s.AutoSuspend).WithHint("use 1s or more")
	case s.AutoSuspend > 0 && len(s.Publish) > 0:
		return fault.New(fault.Invalid, "a VM with published ports is not suspended by itself: nobody would listen on them").
			WithHint("leave out one of the two")
	case s.TTL < 0 || s.IdleTimeout < 0:
		return fault.New(fault.Invalid, "bad time to live %s or idle timeout %s: negative", s.TTL, s.IdleTimeout)
	case s.Image == "":
		return fault.New(fault.Invalid, "no image named")
	case s.Kernel == "":
		return fault.New(fault.Invalid, "no kernel named")
	}
	if err := validatePublished(s.Publish); err != nil {
		return err
	}
	return ValidateEnv(s.Env)
}

// ParseSize reads a size in bytes: a whole number, optionally with a unit. K, M, G, T and KiB, MiB, GiB, TiB are powers
// of 1024; there are no decimal units, as with docker and qemu.
func ParseSize(text string) (int64, error) {
	bad := func() error {
		return fault.New(fault.Invalid, "bad size %q", clip(text)).WithHint("write a number and a unit: 512M, 4GiB, or bytes")
	}
	digits := strings.TrimRight(text, "KMGTkmgtiBb")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || strings.HasPrefix(text, "+") {
		return 0, bad()
	}
	shift := 0
	switch strings.ToUpper(text[len(digits):]) {
	case "", "B":
	case "K", "KB", "KIB":
		shift = 10
	case "M", "MB", "MIB":
		shift = 20
	case "G", "GB", "GIB":
		shift = 30
	case "T", "TB", "TIB":
		shift = 40
	default:
		return 0, bad()
	}
	if n > math.MaxInt64>>shift {
		return 0, bad()
	}
	return n << shift, nil
}

// FormatSize writes a size the way ParseSize reads it, with the largest unit that loses nothing.
func FormatSize(n int64) string {
	units := []string{"TiB", "GiB", "MiB", "KiB"}
	for i, u := range units {
		if size := int64(1) << (40 - 10*i); n >= size && n%size == 0 {
			return strconv.FormatInt(n/size, 10) + u
		}
	}
	return strconv.FormatInt(n, 10)
}
