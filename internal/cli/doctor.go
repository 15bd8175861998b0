package cli

import (
	"context"
	"fmt"
	"os"
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
}

type checkView struct {
	Name   string `json:"name"`
	Result string `json:"result"` // pass, warn, fail
	Detail string `json:"detail"`
	Fix    string `json:"fix"` // the one line that mends it
}

func newDoctor(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what this machine can do, and what it lacks",
		Long: `Check what each backend and feature needs, and show the effective defaults of a new VM. What fails comes with the
line that mends it. The exit status is 1 if a check failed.`,
		Example:           "  banger doctor\n  banger doctor --json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a, asJSON) },
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func runDoctor(ctx context.Context, a *app, asJSON bool) error {
	report, err := a.diagnose(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		report = a.diagnoseAlone(err)
	}
	v := viewReport(report)
	if asJSON {
		err = writeJSON(a.sys.Stdout, v)
	} else {
		err = a.writeReport(v)
	}
	if err == nil && !v.OK {
		return exitStatus(exitChecksFailed)
	}
	return err
}

func (a *app) diagnose(ctx context.Context) (*bangerv1.DoctorResponse, error) {
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	res, err := client.System.Doctor(ctx, connect.NewRequest(&bangerv1.DoctorRequest{}))
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

func viewReport(r *bangerv1.DoctorResponse) doctorView {
	v := doctorView{OK: true, Checks: []checkView{}, DefaultSources: r.GetDefaultSources()}
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

func (a *app) writeReport(v doctorView) error {
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
	_, err := fmt.Fprint(a.sys.Stdout, b.String())
	return err
}
