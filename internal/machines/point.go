package machines

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"banger/internal/diskcopy"
	"banger/internal/fault"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
	"banger/internal/store"
)

// A point is a moment of a VM in a directory: its memory, the state of its devices, and its disks as of that moment. A
// VM that is made from a point has copies of the disks, and an origin: a file that says that its first start does not boot
// but goes on from there. The start takes the origin away before the guest runs, for afterwards memory and disks do not
// belong together any more.

// Files of a point. The disks have the names that they have in a VM's directory.
const (
	pointMemory   = "memory"
	pointState    = "state"
	pointManifest = "manifest.json"
)

// point is what is known of a point, as its manifest.
type point struct {
	dir string

	Traits  traits
	Machine hypervisor.Machine // without the paths of its disks
	Network bool
	Spec    microvm.Spec
	Created time.Time
	Files   map[string]pointFile // by name

	Workspace *store.Workspace // nil: it had none, and a template never has
}

// pointFile is what is remembered of a file, to see that it is what it was. Files are not read through for that: their
// size and time tell of what was written to them, and a sum of a part of them, of what the disk has lost.
type pointFile struct {
	Size    int64
	ModTime time.Time
	Sum     string // SHA-256 of samples, in hexadecimal
}

// samples is how many pieces of sampleSize bytes make the sum of a file; smaller files are read as a whole.
const (
	samples    = 64
	sampleSize = 4096
)

// look describes a file of a point.
func look(path string) (pointFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return pointFile{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return pointFile{}, err
	}
	hash := sha256.New()
	step := max(info.Size()/samples, sampleSize)
	for at := int64(0); at < info.Size(); at += step {
		if _, err := io.Copy(hash, io.NewSectionReader(f, at, sampleSize)); err != nil {
			return pointFile{}, err
		}
	}
	return pointFile{Size: info.Size(), ModTime: info.ModTime(), Sum: hex.EncodeToString(hash.Sum(nil))}, nil
}

// pointFiles are all files of a point but its manifest.
func pointFiles() []string { return []string{pointMemory, pointState, systemDisk, workDisk} }

// savePoint makes a point of a running or paused VM in a new directory, which is left behind if it fails. The VM goes on.
func savePoint(ctx context.Context, h *hold, a *attachment, dir string) (point, monitorlink.Saved, error) {
	p := point{
		dir: dir, Machine: a.launch.Machine, Network: a.launch.Network != nil, Spec: h.vm.Spec, Created: time.Now().UTC(),
		Files: map[string]pointFile{},
	}
	var saved monitorlink.Saved
	var err error
	if p.Traits, err = traitsOf(ctx, h.core, a.launch, h.vm); err != nil {
		return p, saved, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return p, saved, fmt.Errorf("make a directory: %w", err)
	}
	saved, err = a.client.Save(ctx, monitorlink.SaveSpec{
		Snapshot: p.snapshot(),
		Disks: map[string]string{
			guestproto.DiskSystem: filepath.Join(dir, systemDisk), guestproto.DiskWork: filepath.Join(dir, workDisk),
		},
	})
	if err != nil {
		return p, saved, err
	}
	for _, name := range pointFiles() {
		if p.Files[name], err = look(filepath.Join(dir, name)); err != nil {
			return p, saved, fmt.Errorf("look at what was saved: %w", err)
		}
	}
	if p.Workspace, err = saveWorkspace(ctx, h, dir); err != nil {
		return p, saved, err
	}
	if err := monitorlink.WriteJSON(filepath.Join(dir, pointManifest), p); err != nil {
		return p, saved, fmt.Errorf("write manifest: %w", err)
	}
	return p, saved, nil
}

// openPoint reads the manifest of a point. fault.NotFound: there is none; fault.Corrupt: it makes no sense.
func openPoint(dir string) (point, error) {
	p := point{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, pointManifest))
	if errors.Is(err, fs.ErrNotExist) {
		return p, fault.New(fault.NotFound, "it is not there any more")
	}
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fault.New(fault.Corrupt, "its manifest is damaged: %w", err)
	}
	p.dir = dir
	return p, nil
}

// check makes sure that the files are what they were.
func (p point) check() error {
	for _, name := range pointFiles() {
		now, err := look(filepath.Join(p.dir, name))
		was := p.Files[name]
		switch {
		case err != nil:
			return fault.New(fault.Corrupt, "its file %s can't be read: %w", name, err)
		case now.Size != was.Size || !now.ModTime.Equal(was.ModTime) || now.Sum != was.Sum:
			return fault.New(fault.Corrupt, "its file %s is not what was saved", name)
		}
	}
	return nil
}

func (p point) snapshot() hypervisor.Snapshot {
	return hypervisor.Snapshot{Memory: filepath.Join(p.dir, pointMemory), State: filepath.Join(p.dir, pointState)}
}

// allocated returns how many bytes of the disk the point takes up.
func (p point) allocated() (sum int64) {
	for _, name := range pointFiles() {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(p.dir, name), &st) == nil {
			const block = 512 // bytes; stat(2)
			sum += st.Blocks * block
		}
	}
	return sum
}

// copyDisks gives a VM the disks of the point.
func (p point) copyDisks(ctx context.Context, to string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range []string{systemDisk, workDisk} {
		g.Go(func() error { return diskcopy.Clone(ctx, filepath.Join(to, name), filepath.Join(p.dir, name)) })
	}
	return g.Wait()
}

// originFile is in the directory of a VM that is to go on from a point; takenFile, from when that is tried until it has
// come up.
const (
	originFile = "origin.json"
	takenFile  = "origin.taken.json"
)

// origin says where a VM goes on.
type origin struct {
	Point    string // directory
	Same     bool   // it goes on as the same machine; the point is its own and goes when it has
	Template bool   // any VM like it would do: if it can't be restored, the VM boots
}

// writeOrigin makes the first start of a VM go on from a point.
func writeOrigin(h *hold, o origin) error {
	if err := monitorlink.WriteJSON(filepath.Join(h.dirs().State, originFile), o); err != nil {
		return fmt.Errorf("record what VM %s goes on from: %w", h.vm.Name, err)
	}
	return nil
}

// readOrigin returns where the VM goes on; nil: it boots. taken: that was tried already, and cut off.
func readOrigin(h *hold) (o *origin, taken bool, err error) {
	for _, name := range []string{takenFile, originFile} {
		o, err := readOriginFile(filepath.Join(h.dirs().State, name))
		if err != nil || o != nil {
			return o, name == takenFile, err
		}
	}
	return nil, false, nil
}

// readOriginFile reads a record of where a VM goes on; nil: there is none.
func readOriginFile(path string) (*origin, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // as documented
	}
	o := &origin{}
	if err == nil {
		err = json.Unmarshal(text, o)
	}
	if err != nil {
		return nil, fmt.Errorf("read what a VM goes on from: %w", err)
	}
	return o, nil
}

// forgetOrigin makes a VM one like others: it has come up, or it boots.
func forgetOrigin(h *hold) error {
	for _, name := range []string{originFile, takenFile} {
		if err := os.Remove(filepath.Join(h.dirs().State, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what VM %s goes on from: %w", h.vm.Name, err)
		}
	}
	return os.RemoveAll(filepath.Join(h.dirs().State, suspendedDir))
}

// continuation is a restore that is about to be tried.
type continuation struct {
	origin
	point point
}

// continues finds out whether the VM goes on from a point; nil: it boots. One that was made from a template and can't be
// restored is made fit to boot, and that is told.
func continues(ctx context.Context, h *hold, launch monitorlink.Launch, report progress.Sink) (*continuation, error) {
	o, taken, err := readOrigin(h)
	if err != nil || o == nil {
		return nil, err
	}
	c := &continuation{origin: *o}
	if taken {
		err = fault.New(fault.Canceled, "an earlier start was cut off")
	} else if c.point, err = openPoint(o.Point); err == nil {
		if err = c.point.check(); err == nil {
			err = c.point.fits(ctx, h, launch)
		}
	}
	if err == nil {
		return c, nil
	}
	return nil, c.giveUp(ctx, h, err, report)
}

// giveUp lets the VM boot instead. Its disks are those of the point; a VM from a template gets its own.
func (c *continuation) giveUp(ctx context.Context, h *hold, why error, report progress.Sink) error {
	what := "the VM boots with the disks of the moment that it was to go on from"
	if c.Template {
		what = "the template is not used, and the VM boots"
		if err := renewDisks(ctx, h); err != nil {
			return err
		}
		if !fault.Is(why, fault.NotFound) && !fault.Is(why, fault.Canceled) {
			if err := os.RemoveAll(c.Point); err != nil { // another one is made
				h.log.WarnContext(ctx, "remove template", "path", c.Point, "err", err)
			}
		}
	}
	report.Send(progress.Update{Stage: stageRestore, Warning: fmt.Sprintf("%s: %v", what, why)})
	h.log.WarnContext(ctx, "VM is not restored", "vm", h.vm.ID, "point", c.Point, "err", why)
	return forgetOrigin(h)
}

// stageRestore is the stage of a start that takes the place of "boot".
const stageRestore = "restore"

// take makes the launch one that goes on from the point. From now on the origin serves no other start.
func (c *continuation) take(h *hold, launch *monitorlink.Launch) error {
	dir := h.dirs().State
	if err := os.Rename(filepath.Join(dir, originFile), filepath.Join(dir, takenFile)); err != nil {
		return fmt.Errorf("take what VM %s goes on from: %w", h.vm.Name, err)
	}
	m := &launch.Machine
	m.VCPUs, m.Memory, m.FixedMemory = c.point.Machine.VCPUs, c.point.Machine.Memory, c.point.Machine.FixedMemory
	launch.Restore = &monitorlink.Restore{
		Snapshot: c.point.snapshot(), Hostname: hostnameOf(h.vm), MachineID: machineIDOf(h.vm), BootID: randomUUID(),
	}
	if c.Same {
		launch.Restore.BootID = ""
	}
	return nil
}

// randomUUID returns a random UUID, RFC 9562 section 5.4.
func randomUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b)
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// traits are what must be the same for a point to be restored; each is told by its name if it is not.
type traits struct {
	Format      int
	Image       string // digest
	Modules     string // identity of the file
	Kernel      string // likewise; what a template boots
	Initramfs   string // likewise: kernel's modules and the agent
	Backend     string
	Version     string // of the VMM
	Accelerator string
	CPU         string // model of the host
	VCPUs       int
	Memory      int64
	DiskSize    int64
	Cmdline     string // of the kernel, but for the host name
	Network     bool
}

// pointFormat changes with what banger itself expects of a point.
const pointFormat = 1

// traitsOf returns the traits of a VM as it would be started.
func traitsOf(ctx context.Context, s *core, l monitorlink.Launch, vm microvm.VM) (traits, error) {
	hv, err := s.host.Hypervisor(ctx, l.Backend)
	if err != nil {
		return traits{}, err
	}
	m := l.Machine
	t := traits{
		Format: pointFormat, Image: vm.ImageDigest, Backend: l.Backend, Version: hv.Version, Accelerator: l.Accelerator, CPU: cpuModel(),
		VCPUs: m.VCPUs, Memory: m.Memory, DiskSize: vm.Spec.DiskSize, Network: l.Network != nil,
		Cmdline: strings.Replace(m.Cmdline, guestproto.BootParams{Hostname: hostnameOf(vm), MachineID: machineIDOf(vm)}.Encode(), "", 1),
		Kernel:  fileIdentity(m.Kernel), Initramfs: fileIdentity(m.Initramfs),
	}
	for _, d := range m.Disks {
		if d.Serial == guestproto.DiskModules {
			t.Modules = fileIdentity(d.Path)
		}
	}
	return t, nil
}

// fileIdentity names the content of a file that is only ever replaced.
func fileIdentity(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return path + " missing"
	}
	return fmt.Sprintf("%s %d %d", path, info.Size(), info.ModTime().UnixNano())
}

// cpuModel returns the name of the host's CPU, as /proc/cpuinfo has it, with its microcode.
func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	var parts []string
	for line := range strings.Lines(string(text)) {
		key, value, found := strings.Cut(line, ":")
		if !found {
			break // the first CPU's part ends with an empty line
		}
		if key = strings.TrimSpace(key); key == "model name" || key == "microcode" {
			parts = append(parts, strings.TrimSpace(value))
		}
	}
	return strings.Join(parts, ", ")
}

// key is the name of the template of VMs with these traits.
func (t traits) key() string {
	text, _ := json.Marshal(t) // plain values
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])[:keyLength]
}

const keyLength = 24

// differs names what is different, in words; empty: nothing that matters to a restore. What is only booted with does not
// matter to a point that has booted.
func (t traits) differs(now traits) string {
	var words []string
	for _, f := range []struct{ name, was, is string }{
		{"format", fmt.Sprint(t.Format), fmt.Sprint(now.Format)},
		{"image", t.Image, now.Image},
		{"modules", t.Modules, now.Modules},
		{"backend", t.Backend, now.Backend},
		{"version of " + t.Backend, t.Version, now.Version},
		{"accelerator", t.Accelerator, now.Accelerator},
		{"CPU", t.CPU, now.CPU},
		{"network", fmt.Sprint(t.Network), fmt.Sprint(now.Network)},
	} {
		if f.was != f.is {
			words = append(words, fmt.Sprintf("%s (%s, now %s)", f.name, f.was, f.is))
		}
	}
	return strings.Join(words, ", ")
}

// fits refuses a point that was made by something else than would restore it.
func (p point) fits(ctx context.Context, h *hold, launch monitorlink.Launch) error {
	now, err := traitsOf(ctx, h.core, launch, h.vm)
	if err != nil {
		return err
	}
	if words := p.Traits.differs(now); words != "" {
		return fault.New(fault.Precondition, "it was made with another %s", words)
	}
	return nil
}
