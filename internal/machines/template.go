package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/microvm"
	"banger/internal/progress"
)

// A template is a point at which a VM has just come up, with nothing in it that is anybody's: VMs with the same traits
// that are made for a command go on from there instead of booting. It is made in the background, by a VM of its own,
// after a VM with those traits has booted. That VM has a row like any other and is ephemeral, so that recovery removes
// it; its name is one that no user can give.

// TemplateConfig says where templates are and how much room they may take.
type TemplateConfig struct {
	Dir     string        // empty: there are no templates
	MaxSize int64         // bytes that they may take up; beyond, the ones that were used longest ago go
	Delay   time.Duration // from a boot to the making of its template

	Ready       int   // spares for each template in use; 0: none
	ReadyMemory int64 // bytes of memory that all spares may take up
}

// templatePrefix begins the names of VMs that templates are made with. Users' names have no dots.
const templatePrefix = "template."

// templateNice is by how much such VMs stand back behind others, setpriority(2).
const templateNice = 15

func isTemplate(vm microvm.VM) bool { return strings.HasPrefix(vm.Name, templatePrefix) }

// isNobodys reports whether the VM is in nobody's list.
func isNobodys(vm microvm.VM) bool { return isNobodysName(vm.Name) }

func isNobodysName(name string) bool {
	return strings.HasPrefix(name, templatePrefix) || strings.HasPrefix(name, microvm.SparePrefix)
}

// templates is what is known of them in memory.
type templates struct {
	config TemplateConfig

	mu     sync.Mutex
	failed map[string]time.Time // by key, when making it failed
	busy   chan struct{}        // capacity 1: full while one is made
}

func newTemplates(c TemplateConfig) *templates {
	return &templates{config: c, failed: map[string]time.Time{}, busy: make(chan struct{}, 1)}
}

// retryAfter is how long a template that could not be made is left alone.
const retryAfter = time.Hour

// unfinished begins the names of directories in which a template is being made.
const unfinished = ".new-"

func (t *templates) dir(key string) string { return filepath.Join(t.config.Dir, key) }

// find returns the template for a VM that is being created; nil: there is none that can be used.
func (t *templates) find(ctx context.Context, h *hold, report progress.Sink) *point {
	if t.config.Dir == "" {
		return nil
	}
	key, err := keyOf(ctx, h, report)
	if err != nil {
		return nil // whoever starts it is told
	}
	p, err := openPoint(t.dir(key))
	if err != nil {
		if !fault.Is(err, fault.NotFound) {
			h.log.WarnContext(ctx, "template", "key", key, "err", err)
		}
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(p.dir, now, now) // when it was used last
	return &p
}

// keyOf returns the key of the template that a VM could be restored from.
func keyOf(ctx context.Context, h *hold, report progress.Sink) (string, error) {
	launch, err := h.plan(ctx, report)
	if err != nil {
		return "", err
	}
	traits, err := traitsOf(ctx, h.core, launch, h.vm)
	return traits.key(), err
}

// Templates is the part of the service that makes templates and keeps them.
type Templates struct{ *core }

// TemplatesOf returns the part of a service that keeps templates.
func TemplatesOf(s *Service) Templates { return Templates{&s.core} }

// Prepare makes the template of VMs like this one in the background, if there is none, and spares, if there are to be some. It
// returns at once.
func (s Templates) Prepare(vm microvm.VM) {
	if s.templates.config.Dir == "" || isNobodys(vm) {
		return
	}
	_ = s.spawn(func(ctx context.Context) { // the daemon ends: then not
		key, err := keyOf(ctx, &hold{core: s.core, vm: vm}, nil)
		if err != nil {
			return
		}
		defer s.pool.replenish(ctx, s.core, vm, key)
		if s.templates.skip(key) {
			return
		}
		select {
		case <-time.After(s.templates.config.Delay):
		case <-ctx.Done():
			return
		}
		select {
		case s.templates.busy <- struct{}{}:
		default:
			return // another one is made; the next VM like this asks again
		}
		defer func() { <-s.templates.busy }()
		if _, err := buildTemplate(ctx, s.core, vm, key, nil); err != nil && ctx.Err() == nil {
			s.templates.fail(key)
			s.log.WarnContext(ctx, "make template", "key", key, "err", err)
		}
	})
}

// skip reports whether there is a template already, or making it has failed a short while ago.
func (t *templates) skip(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, failed := t.failed[key]; failed && time.Since(at) < retryAfter {
		return true
	}
	_, err := os.Stat(filepath.Join(t.dir(key), pointManifest))
	return err == nil
}

func (t *templates) fail(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed[key] = time.Now()
}

// Template is a template as it is listed.
type Template struct {
	ID       string
	Spec     microvm.Spec // of the VMs that it serves
	Backend  string
	Version  string // of the VMM
	Size     int64  // bytes that it takes up
	Created  time.Time
	LastUsed time.Time
	Problem  string // why it is not used; empty: it is
}

// List lists the templates, the one that was used last first.
func (s Templates) List(ctx context.Context) ([]Template, error) {
	all, err := s.templates.list()
	if err != nil {
		return nil, err
	}
	out := make([]Template, len(all))
	for i, p := range all {
		out[i] = p.describe(ctx, s.core)
	}
	return out, nil
}

func (p point) describe(ctx context.Context, s *core) Template {
	t := Template{
		ID: filepath.Base(p.dir), Spec: p.Spec, Backend: p.Traits.Backend, Version: p.Traits.Version, Size: p.allocated(), Created: p.Created,
		LastUsed: p.used(),
	}
	now := p.Traits
	hv, err := s.host.Hypervisor(ctx, p.Traits.Backend)
	if err == nil {
		now.Version, now.Accelerator, now.CPU, now.Format = hv.Version, hv.Accelerator, cpuModel(), pointFormat
		if words := p.Traits.differs(now); words != "" {
			err = fault.New(fault.Precondition, "made with another %s", words)
		}
	}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		t.Problem = err.Error()
	}
	return t
}

func (p point) used() time.Time {
	info, err := os.Stat(p.dir)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// list returns those that can be read, the one that was used last first.
func (t *templates) list() ([]point, error) {
	if t.config.Dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(t.config.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var all []point
	for _, e := range entries {
		if p, err := openPoint(t.dir(e.Name())); err == nil && !strings.HasPrefix(e.Name(), unfinished) {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b point) int { return b.used().Compare(a.used()) })
	return all, nil
}

// Delete removes the template with an id or an unambiguous prefix of one. VMs that were restored from it go on.
func (s Templates) Delete(ctx context.Context, ref string) (id string, err error) {
	all, err := s.templates.list()
	if err != nil {
		return "", err
	}
	var found []point
	for _, p := range all {
		if strings.HasPrefix(filepath.Base(p.dir), ref) && ref != "" {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return "", fault.New(fault.NotFound, "there is no template %q", ref).WithHint("list them: banger template list")
	case 1:
	default:
		return "", fault.New(fault.Invalid, "%q means %d templates", ref, len(found)).WithHint("give more digits of the id")
	}
	id = filepath.Base(found[0].dir)
	if err := s.templates.remove(found[0]); err != nil {
		return "", err
	}
	s.pool.drop(ctx, s.core, "its template is deleted", func(sp spare) bool { return sp.key == id })
	return id, nil
}

// remove hides a template before it removes it, so that no half of one is ever found.
func (t *templates) remove(p point) error {
	hidden := t.dir(unfinished + "gone-" + filepath.Base(p.dir))
	if err := errors.Join(os.RemoveAll(hidden), os.Rename(p.dir, hidden)); err != nil {
		return fmt.Errorf("delete template: %w", err)
	}
	return os.RemoveAll(hidden)
}

// sweep removes what was left of templates whose making was cut off. Only while none is made.
func (t *templates) sweep() error {
	if t.config.Dir == "" {
		return nil
	}
	left, _ := filepath.Glob(t.dir(unfinished + "*"))
	var errs []error
	for _, dir := range left {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// prune removes templates beyond the room that they may take, those first that were used longest ago.
func (t *templates) prune() error {
	all, err := t.list()
	if err != nil {
		return err
	}
	var sum int64
	var errs []error
	for i, p := range all {
		if sum += p.allocated(); sum > t.config.MaxSize && i > 0 {
			errs = append(errs, t.remove(p))
		}
	}
	return errors.Join(errs...)
}

// Build makes the template for VMs of a specification now, and returns it; the one that is there, if it is.
func (s Templates) Build(ctx context.Context, spec microvm.Spec, report progress.Sink) (Template, error) {
	if s.templates.config.Dir == "" {
		return Template{}, fault.New(fault.Precondition, "templates are turned off").
			WithHint("set enabled = true in [templates] of the config file")
	}
	if spec.Kernel == "" {
		spec.Kernel = s.sources.KernelOf(cmp.Or(spec.Image, s.config.Defaults.Image))
	}
	spec = complete(spec, s.config.Defaults)
	if err := spec.Validate(); err != nil {
		return Template{}, err
	}
	image, err := s.sources.Image(ctx, spec.Image, report)
	if err != nil {
		return Template{}, err
	}
	vm := microvm.VM{ID: microvm.NewID(), Name: templatePrefix, Spec: withImage(spec, image), ImageDigest: image.Digest}
	key, err := keyOf(ctx, &hold{core: s.core, vm: vm}, report)
	if err != nil {
		return Template{}, err
	}
	if p, err := openPoint(s.templates.dir(key)); err == nil && p.check() == nil {
		return p.describe(ctx, s.core), nil
	}
	select {
	case s.templates.busy <- struct{}{}:
	case <-ctx.Done():
		return Template{}, context.Cause(ctx)
	}
	defer func() { <-s.templates.busy }()
	p, err := buildTemplate(ctx, s.core, vm, key, report)
	if err != nil {
		return Template{}, fmt.Errorf("make template: %w", err)
	}
	return p.describe(ctx, s.core), nil
}

// Times of the making of a template.
const (
	settleTimeout = 2 * time.Minute  // for systemd to have started everything
	warmTimeout   = 30 * time.Second // for a command that only warms the guest
	eraseTimeout  = time.Minute
)

// buildTemplate makes a template with a VM like the given one.
func buildTemplate(ctx context.Context, s *core, like microvm.VM, key string, report progress.Sink) (point, error) {
	if err := admit(s.config.VMs, minFree+like.Spec.Memory/2, "a template"); err != nil {
		return point{}, err
	}
	spec := plainSpec(like.Spec)
	vm, err := makeVM(ctx, s, microvm.VM{Name: templatePrefix + key[:12], Spec: spec, Ephemeral: true},
		func(ctx context.Context, h *hold, back *undo) error {
			if err := s.store.SetImage(ctx, h.vm.ID, like.ImageDigest, spec); err != nil {
				return err
			}
			h.vm.ImageDigest = like.ImageDigest
			return h.makeDisks(ctx, back, nil, false)
		})
	if err != nil {
		return point{}, err
	}
	h, err := s.claimVM(ctx, vm, claimant{op: "make template"})
	if err != nil {
		return point{}, err
	}
	defer h.release()
	defer func() {
		erase, cancel := context.WithTimeout(context.WithoutCancel(ctx), eraseTimeout)
		defer cancel()
		if again, err := h.store.Get(erase, h.vm.ID); err == nil {
			h.vm = again
		}
		if err := h.delete(erase); err != nil {
			h.log.ErrorContext(ctx, "remove the VM of a template", "vm", h.vm.ID, "err", err)
		}
	}()
	if err := h.start(ctx, report); err != nil {
		return point{}, err
	}
	a := h.attachment()
	if a == nil {
		return point{}, fault.New(fault.Unavailable, "its VM has ended")
	}
	end := report.Stage("settle")
	warm(ctx, guestlink.NewClient(a.client), h.vm)
	end(nil)
	dir := s.templates.dir(unfinished + key)
	defer os.RemoveAll(dir) //nolint:errcheck // gone if all went well; else swept at the next start
	end = report.Stage("save")
	p, _, err := savePoint(ctx, h, a, dir)
	if err == nil {
		err = p.publish(s.templates.dir(key))
	}
	end(err)
	if err != nil {
		return point{}, err
	}
	s.log.InfoContext(ctx, "template made", "key", key, "image", spec.Image, "size", p.allocated())
	p.dir = s.templates.dir(key)
	return p, s.templates.prune()
}

// publish lets a point appear under its name, in the place of one that is there.
func (p point) publish(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(p.dir, dir)
}

// warm brings a guest to rest, and makes it run a command or two, so that what that takes is in its memory. What an image
// cannot do is left out.
func warm(ctx context.Context, guest *guestlink.Client, vm microvm.VM) {
	if initOf(vm.Spec) != guestproto.InitAgent {
		settle, cancel := context.WithTimeout(ctx, settleTimeout)
		_ = runQuietly(settle, guest, "systemctl", "is-system-running", "--wait") // degraded is fine, and so is no systemd
		cancel()
	}
	warm, cancel := context.WithTimeout(ctx, warmTimeout)
	defer cancel()
	for range 2 {
		if runQuietly(warm, guest, "/bin/sh", "-c", "true") != nil {
			break
		}
	}
	// As it is, once more: the files that a restored guest writes first are on its own disk by then, and need no copying up.
	_ = guest.Configure(warm, guestproto.Identity{Hostname: hostnameOf(vm), MachineID: machineIDOf(vm)})
	_ = guest.Sync(warm)
}

// runQuietly runs a command in a guest to its end, whatever that is.
func runQuietly(ctx context.Context, guest *guestlink.Client, args ...string) error {
	p, err := guest.Start(ctx, guestproto.ExecSpec{Args: args})
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // it has ended, or is ended by this
	for {
		if _, err := p.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}
