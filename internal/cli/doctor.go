package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"banger/internal/config"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/hostexec"
)

// Results of a check, as in the API.
const (
	checkPass = "pass"
	checkWarn = "warn"
	checkFail = "fail"
)

// doctorView is the report in JSON.
type doctorView struct {
	OK             bool              `json:"ok"` // no check failed
	Checks         []checkView       `json:"checks"`
	Defaults       *specView         `json:"defaults"`        // of a new VM; null if the daemon can't say
	DefaultSources map[string]string `json:"default_sources"` // setting -> where its value comes from
	Leftovers      []leftoverView    `json:"leftovers"`       // what crashes have left
}

type leftoverView struct {
	Kind   string `json:"kind"` // process, state, disk, directory, image, kernel, unknown
	VM     string `json:"vm"`   // empty: it concerns none
	Path   string `json:"path"` // empty: it is no file
	Pid    int64  `json:"pid"`  // 0: it is no process
	Detail string `json:"detail"`
	Mended bool   `json:"mended"` // by this call
	Error  string `json:"error"`  // why this call could not
	Fix    string `json:"fix"`    // what to do about it; empty if mended
}

type checkView struct {
	Name   string `json:"name"`
	Result string `json:"result"` // pass, warn, fail
	Detail string `json:"detail"`
	Fix    string `json:"fix"` // the one line that mends it
}

func newDoctor(a *app) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine can do, and what it lacks",
		Long: `Check what each backend and feature needs, look for what crashes have left over, and show the effective defaults of a
new VM. What fails comes with the line that mends it. The exit status is 1 if a check failed.

With --fix the daemon sees to what is left over: processes and directories that belong to no VM, VMs that are not what is
recorded of them, images that nobody needs, unfinished builds. VMs that run go on running, and nothing is touched that is
not banger's beyond doubt.`,
		Example:           "  banger doctor\n  banger doctor --fix\n  banger doctor --json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.out.register(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "the same as --output json")
	cmd.Flags().BoolVar(&o.fix, "fix", false, "see to what is left over")
	return cmd
}

type doctorOptions struct {
	out  outputFlags
	json bool
	fix  bool
}

func runDoctor(ctx context.Context, a *app, o doctorOptions) error {
	report, err := a.diagnose(ctx, o.fix)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		report = a.diagnoseAlone(err)
	}
	v := viewReport(report)
	if o.json {
		err = writeJSON(a.sys.Stdout, v)
	} else {
		err = o.out.write(a, v, func(w io.Writer) error { return a.writeReport(w, v) })
	}
	if err == nil && !v.OK {
		return exitStatus(exitChecksFailed)
	}
	return err
}

func (a *app) diagnose(ctx context.Context, fix bool) (*bangerv1.DoctorResponse, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	res, err := client.System.Doctor(ctx, connect.NewRequest(&bangerv1.DoctorRequest{Fix: fix}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// diagnoseAlone checks what can be checked without a daemon, which is what is missing.
func (a *app) diagnoseAlone(cause error) *bangerv1.DoctorResponse {
	r := &bangerv1.DoctorResponse{}
	check := func(name, good string, err error) {
		c := &bangerv1.Check{Name: name, Result: checkPass, Detail: good}
		if err != nil {
			c.Result, c.Detail, c.Fix = checkFail, err.Error(), hintOf(err)
		}
		r.Checks = append(r.Checks, c)
	}
	check("daemon", "", cause)
	c, err := config.Load(a.env)
	check("configuration", c.File, err)
	if err == nil {
		check("directories", c.Paths.State+", "+c.Paths.Runtime, c.Paths.EnsureDirs())
		r.Checks = append(r.Checks, checkDatabase(c.Paths), checkVMs(c.Paths))
	}
	qemu, err := hostexec.Look("qemu-system-x86_64", "qemu-system-x86")
	check("qemu", qemu, err)
	kvm := &bangerv1.Check{Name: "kvm", Result: checkPass, Detail: "/dev/kvm can be opened"}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		kvm.Result, kvm.Detail = checkWarn, err.Error()+": VMs run on emulated CPUs"
	} else {
		_ = f.Close()
	}
	r.Checks = append(r.Checks, kvm)
	return r
}

// checkDatabase says what is there of the database, which only a daemon can read.
func checkDatabase(p config.Paths) *bangerv1.Check {
	c := &bangerv1.Check{Name: "database", Result: checkPass}
	info, err := os.Stat(p.DB())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Detail = "there is none yet"
	case err != nil:
		c.Result, c.Detail = checkFail, err.Error()
	default:
		c.Detail = fmt.Sprintf("%s, %s", p.DB(), size(info.Size()))
	}
	if copies, _ := filepath.Glob(p.DB() + ".*.bak"); len(copies) > 0 {
		c.Detail += "; older copies: " + strings.Join(copies, ", ")
	}
	return c
}

// checkVMs counts the directories of VMs. Their files are whole, and their processes go on, without a daemon.
func checkVMs(p config.Paths) *bangerv1.Check {
	c := &bangerv1.Check{Name: "VMs", Result: checkPass}
	entries, err := os.ReadDir(p.VMs())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.Result, c.Detail = checkFail, err.Error()
		return c
	}
	running := 0
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(p.VMRuntimes(), e.Name())); err == nil {
			running++
		}
	}
	c.Detail = fmt.Sprintf("%d with files in %s, %d of them with files of their running; leftovers are looked for by a daemon",
		len(entries), p.VMs(), running)
	return c
}

func viewReport(r *bangerv1.DoctorResponse) doctorView {
	v := doctorView{OK: true, Checks: []checkView{}, Leftovers: []leftoverView{}, DefaultSources: r.GetDefaultSources()}
	for _, l := range r.GetLeftovers() {
		v.Leftovers = append(v.Leftovers, leftoverView{
			Kind: l.GetKind(), VM: l.GetVm(), Path: l.GetPath(), Pid: l.GetPid(), Detail: l.GetDetail(),
			Mended: l.GetMended(), Error: l.GetError(), Fix: l.GetFix(),
		})
	}
	for _, c := range r.GetChecks() {
		v.Checks = append(v.Checks, checkView{c.GetName(), c.GetResult(), c.GetDetail(), c.GetFix()})
		v.OK = v.OK && c.GetResult() != checkFail
	}
	if r.GetDefaults() != nil {
		spec := viewSpec(r.GetDefaults())
		v.Defaults = &spec
	}
	if v.DefaultSources == nil {
		v.DefaultSources = map[string]string{}
	}
	return v
}

func (a *app) writeReport(w io.Writer, v doctorView) error {
	paint := a.paint(a.sys.Stdout)
	var b strings.Builder
	width := 0
	for _, c := range v.Checks {
		width = max(width, len(c.Name))
	}
	for _, c := range v.Checks {
		result := c.Result
		switch result {
		case checkPass:
			result = paint.green(result)
		case checkWarn:
			result = paint.yellow(result)
		case checkFail:
			result = paint.red(result)
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", result, width, oneLine(c.Name), oneLine(c.Detail))
		if c.Fix != "" && c.Result != checkPass {
			fmt.Fprintf(&b, "      %-*s  try: %s\n", width, "", oneLine(c.Fix))
		}
	}
	if len(v.Leftovers) > 0 {
		b.WriteString("\nLeft over:\n")
		t := &table{head: []string{"KIND", "WHAT", "DETAIL", "STATE"}}
		for _, l := range v.Leftovers {
			t.add(l.Kind, l.what(), l.Detail, l.outcome())
		}
		_ = t.write(&b)
	}
	if d := v.Defaults; d != nil {
		b.WriteString("\nDefaults of a new VM:\n")
		t := &table{head: []string{"SETTING", "VALUE", "FROM"}}
		for _, row := range [][2]string{
			{"vcpu", itoa(d.VCPUs)},
			{"memory", size(d.Memory)},
			{"disk-size", size(d.DiskSize)},
			{"image", d.Image},
			{"kernel", d.Kernel},
			{"init", d.Init},
			{"net", d.Net},
			{"backend", d.Backend},
		} {
			t.add(row[0], row[1], v.DefaultSources[strings.ReplaceAll(row[0], "-", "_")])
		}
		_ = t.write(&b)
	}
	_, err := fmt.Fprint(w, b.String())
	return err
}

// what names the thing.
func (l leftoverView) what() string {
	switch {
	case l.Path != "":
		return l.Path
	case l.VM != "":
		return "VM " + l.VM
	default:
		return "process " + itoa(l.Pid)
	}
}

// outcome says what became of it, or what to do.
func (l leftoverView) outcome() string {
	switch {
	case l.Mended:
		return "mended"
	case l.Error != "":
		return "not mended: " + l.Error
	default:
		return "try: " + l.Fix
	}
}
