// Package machines is the service of virtual machines: it creates, starts, stops, deletes and recovers them. It alone
// knows the order disk, network, boot. It decides; the mechanisms that it uses are behind the small interfaces below.
//
// Every change of a VM is recorded in the store before its effect, and every file of a VM has a name that derives from
// the VM's id, so that a crash between any two lines leaves something that Recover finds (recover.go holds the table).
//
// Locks: each VM has one lock, held by one named operation at a time (lock.go) for as long as that takes; whoever comes
// meanwhile waits a moment and is then told who holds it. table.mu guards the table of locks and attachments and is
// never held over I/O. admission is held over the two statements of SQL that compare the memory of all VMs with the
// host's and record a start. There is no other lock; nothing else is locked across VMs.
//
// Goroutines: one per attached monitor, which follows the monitor's status and records its end. Run owns them all. When
// Run's context ends they stop watching and the VMs go on running.
package machines

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"banger/internal/cgroup"
	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/store"
)

// Store keeps the rows of VMs.
type Store interface {
	Insert(ctx context.Context, vm *microvm.VM) error
	Get(ctx context.Context, id microvm.ID) (microvm.VM, error)
	List(ctx context.Context) ([]microvm.VM, error)
	SetState(ctx context.Context, id microvm.ID, c store.Change) error
	SetImage(ctx context.Context, id microvm.ID, digest string, spec microvm.Spec) error
	UpdateSpec(ctx context.Context, id microvm.ID, spec microvm.Spec, detail string) error
	Remove(ctx context.Context, id microvm.ID) error
}

// Image is a root file system that a VM can boot.
type Image struct {
	Digest     string
	Path       string // raw ext4 image, read-only
	HasSystemd bool
	Config     microvm.ImageConfig
}

// Kernel is a kernel that a VM can boot.
type Kernel struct {
	Path      string
	Initramfs string
	Modules   string // ext4 image of the modules; empty: none
	// By backend: the file to boot instead of Path, and why the kernel can't boot at all.
	Paths map[string]string
	Unfit map[string]error
}

// pathFor returns the file that a backend boots.
func (k Kernel) pathFor(backend string) (string, error) {
	if err := k.Unfit[backend]; err != nil {
		return "", err
	}
	if path := k.Paths[backend]; path != "" {
		return path, nil
	}
	return k.Path, nil
}

// Sources makes images and kernels present. All calls are cheap when the thing is there, and are done once when many
// ask at the same time.
type Sources interface {
	Image(ctx context.Context, name string, report progress.Sink) (Image, error)
	ImageByDigest(ctx context.Context, digest string) (Image, error)
	Kernel(ctx context.Context, name string, report progress.Sink) (Kernel, error)
	// KernelOf returns the name of the kernel that an image was recorded to boot with; empty: none, or the image is not here
	// or not usable. It makes nothing present.
	KernelOf(image string) string
}

// Host is what the service does to the host besides files of its own.
type Host interface {
	// BlankDisk makes a sparse file with an empty ext4 file system.
	BlankDisk(ctx context.Context, path string, size int64) error
	// Hypervisor decides which VMM serves a request for "auto" or for one by name.
	Hypervisor(ctx context.Context, wanted string) (Hypervisor, error)
	// StartMonitor starts the monitor process of a VM.
	StartMonitor(d monitorlink.Dirs, l monitorlink.Launch) error
}

// Hypervisor is the VMM that was chosen.
type Hypervisor struct {
	Backend     string
	Accelerator string
	Version     string          // of the VMM
	Reason      string          // why, in words
	Host        json.RawMessage // for the backend in the monitor
	BootTimeout time.Duration   // how long a healthy guest may take at most
}

// Config is what the service is told once.
type Config struct {
	VMs         string         // directory; each VM has a directory of its own in it
	Runtime     string         // likewise, for what does not outlive a reboot
	Defaults    microvm.Spec   // for what a request leaves out
	EgressAllow []netip.Prefix // granted beyond the default egress policy
	Home        HomeFiles      // nil: none
	HostMemory  int64          // bytes; 0: not known
	Overcommit  config.Overcommit
	Templates   TemplateConfig
	Forks       string                       // directory for what lasts as long as a fork takes
	Workspaces  Workspaces                   // of VMs; nil: there are none
	Cgroups     cgroup.Place                 // where VMs' groups are made
	NoCgroups   map[cgroup.Controller]string // why a controller is not in it
}

// Service is the service of VMs: its methods are what can be asked of it.
type Service struct{ core }

// core is what the service and a held VM share.
type core struct {
	config  Config
	store   Store
	sources Sources
	host    Host
	log     *slog.Logger

	tasks  chan func(context.Context) // goroutines for Run to own
	closed chan struct{}              // Run has ended

	changes *changes

	table table

	admission sync.Mutex

	templates *templates
	pool      *pool
}

// New returns a service. It does nothing before Run.
func New(c Config, st Store, sources Sources, host Host, log *slog.Logger) *Service {
	ch := newChanges()
	return &Service{core{
		changes: ch,
		config:  c, store: tellingStore{st, ch}, sources: sources, host: host, log: log,
		tasks: make(chan func(context.Context)), closed: make(chan struct{}),
		table:     table{entries: map[microvm.ID]*entry{}},
		templates: newTemplates(c.Templates), pool: newPool(c.Templates),
	}}
}

// Run owns the service's goroutines. It returns when the context has ended and they have.
func (s *Service) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(s.closed)
	wg.Go(func() { s.pool.run(ctx, &s.core) })
	for {
		select {
		case task := <-s.tasks:
			wg.Go(func() { task(ctx) })
		case <-ctx.Done():
			return
		}
	}
}

// spawn hands a goroutine to Run.
func (s *core) spawn(task func(context.Context)) error {
	select {
	case s.tasks <- task:
		return nil
	case <-s.closed:
		return fault.New(fault.Unavailable, "the daemon is shutting down").WithHint("try again: it starts by itself")
	}
}

// Info is a VM with what is known of its running process.
type Info struct {
	microvm.VM

	Directory string
	Backend   string // what runs it; empty if it does not run
	Accel     string
	Reason    string // why it was chosen
	Status    monitorlink.Status

	DiskAllocated int64 // bytes that its writable disks take up on the host
	DiskApparent  int64 // bytes that they may take up

	SnapshotsAllocated int64 // bytes that its snapshots take up on the host
}

// List returns every VM, oldest first.
func (s *Service) List(ctx context.Context) ([]Info, error) {
	vms, err := s.store.List(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(vms))
	for _, vm := range vms {
		if !isNobodys(vm) { // those are nobody's
			infos = append(infos, s.infoOf(vm))
		}
	}
	return infos, nil
}

// Get returns the VM that a reference means: a name, an id, or an unambiguous prefix of an id.
func (s *Service) Get(ctx context.Context, ref string) (Info, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return Info{}, err
	}
	return s.infoOf(vm), nil
}

func (s *core) resolve(ctx context.Context, ref string) (microvm.VM, error) {
	vms, err := s.store.List(ctx)
	if err != nil {
		return microvm.VM{}, err
	}
	visible := vms
	for i := range vms { // there are many, they are large, and few are nobody's
		if isNobodysName(vms[i].Name) {
			visible = slices.DeleteFunc(vms, isNobodys)
			break
		}
	}
	return microvm.Resolve(visible, ref)
}

func (s *core) infoOf(vm microvm.VM) Info {
	info := Info{VM: vm, Directory: s.dirsOf(vm.ID).State}
	info.DiskAllocated, info.DiskApparent = s.diskUse(vm.ID)
	info.SnapshotsAllocated = s.snapshotUse(vm.ID)
	if a := s.table.attachment(vm.ID); a != nil {
		info.Status, _ = a.get()
		info.Backend, info.Accel, info.Reason = a.launch.Backend, a.launch.Accelerator, a.launch.Reason
	}
	return info
}

// dirs names the directories of a VM.
func (s *core) dirsOf(id microvm.ID) monitorlink.Dirs {
	return monitorlink.Dirs{
		State:   filepath.Join(s.config.VMs, string(id)),
		Runtime: filepath.Join(s.config.Runtime, string(id)),
	}
}

// Files of a VM in its state directory.
const (
	systemDisk = "system.img"
	workDisk   = "work.img"
)
