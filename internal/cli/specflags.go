package cli

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

// specFlags are the flags that describe a new VM, of run and of create.
type specFlags struct {
	name     string
	image    string
	kernel   string
	vcpus    int
	memory   sizeFlag
	diskSize sizeFlag
	init     choiceFlag
	net      choiceFlag
	backend  string
	env      []string
	labels   []string
	times    lifetimeFlags
	weights  weightFlags
	publish  []string
}

// lifetimeFlags are the times after which something becomes of the VM by itself; 0: never.
type lifetimeFlags struct{ ttl, idle, suspend time.Duration }

func (s *specFlags) register(a *app, cmd *cobra.Command) {
	s.init.choices = []string{string(microvm.InitAuto), string(microvm.InitAgent), string(microvm.InitSystemd)}
	s.net.choices = []string{string(microvm.NetUser), string(microvm.NetNone)}
	f := cmd.Flags()
	f.StringVar(&s.name, "name", "", "`name` of the VM (a-z, 0-9 and -); made up if not given")
	f.StringVar(&s.image, "image", "", "`name` of the image to start from")
	f.StringVar(&s.kernel, "kernel", "", "`name` of the kernel to boot")
	f.IntVar(&s.vcpus, "vcpu", 0, "`number` of virtual CPUs")
	f.Var(&s.memory, "memory", "memory: 512M, 4GiB")
	f.Var(&s.diskSize, "disk-size", "size that each of the two writable disks can grow to: 8G")
	f.Var(&s.init, "init", "process 1 of the guest: "+s.init.list())
	f.Var(&s.net, "net", "network: "+s.net.list())
	f.StringVar(&s.backend, "backend", "", "`hypervisor`: auto, qemu")
	f.StringArrayVarP(&s.env, "env", "e", nil, "`KEY=VALUE` for every command in the VM, or KEY to take it from here; may be repeated")
	f.StringArrayVar(&s.labels, "label", nil, "`KEY=VALUE` to know the VM by; may be repeated")
	f.DurationVar(&s.times.ttl, "ttl", 0, "shut the VM down this long after each start: 8h")
	f.DurationVar(&s.times.suspend, "auto-suspend", 0, "save the VM and end its processes when nothing has happened in it for so long; exec, cp and ssh wake it: 10m")
	f.DurationVar(&s.times.idle, "idle-timeout", 0, "shut the VM down when nothing has happened in it for so long: 30m")
	f.StringArrayVarP(&s.publish, "publish", "p", nil, publishUsage)
	complete(cmd, "publish", noCompletion)
	s.weights.register(cmd)
	complete(cmd, "image", completer{a}.images)
	complete(cmd, "kernel", completer{a}.kernels)
	complete(cmd, "init", fixed(s.init.choices...))
	complete(cmd, "net", fixed(s.net.choices...))
	complete(cmd, "backend", fixed("auto", "qemu"))
}

// request checks the flags and makes a request of them. What was not given is left to the daemon's defaults.
func (s *specFlags) request(a *app, cmd *cobra.Command) (*bangerv1.CreateRequest, error) {
	given := cmd.Flags().Changed
	if given("name") {
		if err := microvm.ValidateName(s.name); err != nil {
			return nil, asUsage(err)
		}
	}
	if given("vcpu") && (s.vcpus < 1 || s.vcpus > microvm.MaxVCPUs) {
		return nil, usagef("bad number of vCPUs %d", s.vcpus).withHint("use 1 to %d", microvm.MaxVCPUs)
	}
	if given("memory") && (s.memory < microvm.MinMemory || s.memory > microvm.MaxMemory) {
		return nil, usagef("bad memory size %s", s.memory.String()).
			withHint("use %s to %s", microvm.FormatSize(microvm.MinMemory), microvm.FormatSize(microvm.MaxMemory))
	}
	if given("disk-size") && (s.diskSize < microvm.MinDiskSize || s.diskSize > microvm.MaxDiskSize) {
		return nil, usagef("bad disk size %s", s.diskSize.String()).
			withHint("use %s to %s", microvm.FormatSize(microvm.MinDiskSize), microvm.FormatSize(microvm.MaxDiskSize))
	}
	if err := s.weights.check(cmd); err != nil {
		return nil, err
	}
	if s.times.ttl < 0 || s.times.idle < 0 {
		return nil, usagef("a negative time to live or idle timeout").withHint("use a time such as 30m")
	}
	if _, err := microvm.ParsePublished(s.publish); err != nil {
		return nil, asUsage(err)
	}
	env, err := a.environment(s.env)
	if err != nil {
		return nil, err
	}
	labels, err := pairs("label", s.labels)
	if err != nil {
		return nil, err
	}
	return &bangerv1.CreateRequest{Name: s.name, Spec: &bangerv1.Spec{
		Image: s.image, Kernel: s.kernel,
		Vcpus:  int32(s.vcpus), // checked above
		Memory: int64(s.memory), DiskSize: int64(s.diskSize),
		Init: s.init.value, Net: s.net.value, Backend: s.backend,
		Env: env, Labels: labels, Ttl: optional(s.times.ttl), IdleTimeout: optional(s.times.idle), AutoSuspend: optional(s.times.suspend),
		Publish: s.publish, CpuWeight: s.weights.cpu, IoWeight: s.weights.io,
	}}, nil
}

// optional leaves out what was not given.
func optional(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// environment turns -e flags into variables; one without a value is taken from here, if it is set here.
func (a *app) environment(flags []string) (map[string]string, error) {
	var whole []string
	for _, f := range flags {
		if !strings.Contains(f, "=") {
			value, ok := a.sys.LookupEnv(f)
			if !ok {
				continue
			}
			f += "=" + value
		}
		whole = append(whole, f)
	}
	env, err := pairs("env", whole)
	if err != nil {
		return nil, err
	}
	if err := microvm.ValidateEnv(env); err != nil {
		return nil, asUsage(err)
	}
	return env, nil
}

// pairs reads KEY=VALUE. A later one replaces an earlier one.
func pairs(flag string, texts []string) (map[string]string, error) {
	if len(texts) == 0 {
		return nil, nil // no pairs
	}
	m := make(map[string]string, len(texts))
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || strings.ContainsRune(text, 0) {
			return nil, usagef("bad --%s %q", flag, text).withHint("write --%s KEY=VALUE", flag)
		}
		m[key] = value
	}
	return m, nil
}

// asUsage is for an error that says that the command line is wrong.
func asUsage(err error) error {
	return &usageError{err: err, hint: hintOf(err)}
}

// sizeFlag is a number of bytes.
type sizeFlag int64

var _ pflag.Value = (*sizeFlag)(nil)

// Set implements [pflag.Value].
func (s *sizeFlag) Set(text string) error {
	n, err := microvm.ParseSize(text)
	if err != nil {
		return asUsage(err)
	}
	*s = sizeFlag(n)
	return nil
}

// String implements [pflag.Value]; "0" is what the help takes for no default.
func (s *sizeFlag) String() string {
	return microvm.FormatSize(int64(*s))
}

// Type implements [pflag.Value]; it is what the help shows.
func (s *sizeFlag) Type() string { return "size" }

// choiceFlag is one of a few words.
type choiceFlag struct {
	value   string
	choices []string
}

var _ pflag.Value = (*choiceFlag)(nil)

// Set implements [pflag.Value].
func (c *choiceFlag) Set(text string) error {
	if !slices.Contains(c.choices, text) {
		return usagef("there is no %q", text).withHint("use one of: %s", c.list())
	}
	c.value = text
	return nil
}

// String implements [pflag.Value].
func (c *choiceFlag) String() string { return c.value }

// Type implements [pflag.Value]; it is what the help shows.
func (c *choiceFlag) Type() string { return "word" }

func (c *choiceFlag) list() string { return strings.Join(c.choices, ", ") }
