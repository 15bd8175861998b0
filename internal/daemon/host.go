package daemon

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/backends"
	"banger/internal/fault"
	"banger/internal/images"
	"banger/internal/kernels"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/rootfs"
)

// host does to the host what the VM service asks for.
type host struct {
	backends []backends.Backend
	exe      string

	mu    sync.Mutex // held while looking at the host, so that many who ask look once
	found map[string]backends.Found
}

func newHost() (*host, error) {
	exe, err := exePath()
	if err != nil {
		return nil, err
	}
	return &host{backends: backends.All(), exe: exe, found: map[string]backends.Found{}}, nil
}

// warm looks at the host before the first request needs it.
func (h *host) warm(ctx context.Context, log *slog.Logger) {
	b, err := h.Hypervisor(ctx, auto)
	if err != nil {
		log.Warn("no hypervisor", "err", err)
		return
	}
	log.Info("hypervisor chosen", "backend", b.Backend, "accelerator", b.Accelerator, "reason", b.Reason)
}

const auto = "auto"

// Boot deadlines: several times what a healthy guest takes on a busy host.
const (
	bootTimeoutKVM = 30 * time.Second
	bootTimeoutTCG = 120 * time.Second
)

// Hypervisor implements machines.Host. What works is looked at once; what does not is looked at again, because it may
// have been installed meanwhile.
func (h *host) Hypervisor(ctx context.Context, wanted string) (machines.Hypervisor, error) {
	var first error
	known := false
	for _, c := range h.backends {
		if wanted != auto && wanted != c.Name {
			continue
		}
		known = true
		b, err := h.detect(ctx, c)
		if err == nil {
			timeout := bootTimeoutTCG
			if b.Accelerator == "kvm" {
				timeout = bootTimeoutKVM
			}
			return machines.Hypervisor{
				Backend: c.Name, Accelerator: b.Accelerator, Version: b.Version, Reason: b.Reason, Host: b.Host, BootTimeout: timeout,
			}, nil
		}
		if first == nil {
			first = err
		}
	}
	if !known {
		return machines.Hypervisor{}, fault.New(fault.Invalid, "there is no backend %q", wanted).
			WithHint("use one of: %s", strings.Join(slices.Concat([]string{auto}, h.names()), ", "))
	}
	return machines.Hypervisor{}, first
}

func (h *host) names() []string {
	names := make([]string, len(h.backends))
	for i, b := range h.backends {
		names[i] = b.Name
	}
	return names
}

func (h *host) detect(ctx context.Context, b backends.Backend) (backends.Found, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f, ok := h.found[b.Name]; ok {
		return f, nil
	}
	f, err := b.Detect(ctx)
	if err == nil {
		h.found[b.Name] = f
	}
	return f, err
}

// BlankDisk implements machines.Host.
func (h *host) BlankDisk(ctx context.Context, path string, size int64) error {
	return rootfs.Blank(ctx, path, size, rootfs.BlankOptions{})
}

// StartMonitor implements machines.Host.
func (h *host) StartMonitor(d monitorlink.Dirs, l monitorlink.Launch) error {
	return monitorlink.Start(h.exe, []string{"monitor"}, d, l)
}

// sources joins images and kernels into what the VM service asks for.
type sources struct {
	images  *images.Store
	kernels *kernels.Store
	guest   string
}

// Image implements machines.Sources.
func (s sources) Image(ctx context.Context, name string, report progress.Sink) (machines.Image, error) {
	end := report.Stage("find image")
	im, err := s.images.Ensure(ctx, name, report)
	end(err)
	return toImage(im), err
}

// ImageByDigest implements machines.Sources.
func (s sources) ImageByDigest(_ context.Context, digest string) (machines.Image, error) {
	im, err := s.images.ByDigest(digest)
	return toImage(im), err
}

func toImage(im images.Image) machines.Image {
	c := im.Config
	// Words that are no variables would keep every command from starting, and mean nothing.
	env := slices.DeleteFunc(slices.Clone(c.Env), func(word string) bool {
		return strings.IndexByte(word, '=') < 1 || strings.ContainsRune(word, 0)
	})
	return machines.Image{
		Digest: im.Digest, Path: im.RootPath, HasSystemd: im.HasSystemd,
		Config: microvm.ImageConfig{
			Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: env, Dir: c.WorkDir, User: c.User, StopSignal: c.StopSignal, Ports: c.ExposedPorts,
		},
	}
}

// KernelOf implements machines.Sources.
func (s sources) KernelOf(image string) string {
	im, err := s.images.Get(image)
	if err != nil {
		return "" // as documented: whoever makes the image present tells what is wrong
	}
	return im.Kernel
}

// Kernel implements machines.Sources.
func (s sources) Kernel(ctx context.Context, name string, report progress.Sink) (machines.Kernel, error) {
	k, err := s.kernels.Ensure(ctx, name, report)
	if err != nil {
		return machines.Kernel{}, err
	}
	initramfs, err := s.kernels.Initramfs(ctx, k, s.guest)
	if err != nil {
		return machines.Kernel{}, err
	}
	return s.bootable(k, initramfs)
}
