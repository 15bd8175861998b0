package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "banger/internal/gen/banger/v1"
)

// outputFlags say in what form a list or a description is written.
type outputFlags struct {
	format choiceFlag
	ids    bool
}

func (o *outputFlags) register(cmd *cobra.Command) {
	o.format = choiceFlag{value: "table", choices: []string{"table", "json", "yaml"}}
	cmd.Flags().VarP(&o.format, "output", "o", "form of the output: "+o.format.list())
	complete(cmd, "output", fixed(o.format.choices...))
}

// registerIDs adds -q, for lists.
func (o *outputFlags) registerIDs(cmd *cobra.Command, what string) {
	cmd.Flags().BoolVarP(&o.ids, "ids", "q", false, "only the "+what)
}

// write writes a value in the form asked for; people writes it for people.
func (o *outputFlags) write(a *app, value any, people func(io.Writer) error) error {
	switch o.format.value {
	case "json":
		return writeJSON(a.sys.Stdout, value)
	case "yaml":
		return writeYAML(a.sys.Stdout, value)
	default:
		return people(a.sys.Stdout)
	}
}

func writeJSON(w io.Writer, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// writeJSONLine writes a value as one line, for streams of values.
func writeJSONLine(w io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// printLine writes one line to standard output.
func (a *app) printLine(text string) error {
	_, err := io.WriteString(a.sys.Stdout, text+"\n")
	return err
}

func itoa[T ~int | ~int32 | ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }

// The structs below are the stable form of JSON and YAML: sizes are in bytes, times as in RFC 3339 and null if unknown,
// durations in seconds. Fields are added, never changed.

// vmView is a VM.
type vmView struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	State       string     `json:"state"`
	Cause       string     `json:"cause"`
	Ephemeral   bool       `json:"ephemeral"`
	ImageDigest string     `json:"image_digest"`
	CreatedAt   *time.Time `json:"created_at"`
	ChangedAt   *time.Time `json:"changed_at"`
	Directory   string     `json:"directory"`
	// What its writable disks take up on the host together, and what they may.
	DiskAllocated int64    `json:"disk_allocated"`
	DiskApparent  int64    `json:"disk_apparent"`
	Spec          specView `json:"spec"`
	runtimeView
	StartStages []stageView `json:"start_stages"` // of the last start
	programView
}

// programView is what a VM is there for.
type programView struct {
	Main         *processView `json:"main"`          // its main process; null: none
	ExposedPorts []string     `json:"exposed_ports"` // that its image says it listens on
	Published    []portMap    `json:"published"`     // while it runs
}

func viewProgram(vm *bangerv1.VM) programView {
	v := programView{ExposedPorts: append([]string{}, vm.GetExposedPorts()...), Published: published(vm)}
	if m := vm.GetMain(); m != nil {
		v.Main = &processView{append([]string{}, m.GetArgs()...), m.GetDir(), m.GetUser()}
	}
	return v
}

// processView is a command of a VM; what is empty is as the image says.
type processView struct {
	Args []string `json:"args"`
	Dir  string   `json:"dir"`
	User string   `json:"user"`
}

// specView is what was asked of a VM.
type specView struct {
	Image    string            `json:"image"`
	Kernel   string            `json:"kernel"`
	VCPUs    int32             `json:"vcpus"`
	Memory   int64             `json:"memory"`
	DiskSize int64             `json:"disk_size"`
	Init     string            `json:"init"`
	Net      string            `json:"net"`
	Backend  string            `json:"backend"`
	Env      map[string]string `json:"env"`
	Labels   map[string]string `json:"labels"`
	Publish  []string          `json:"publish"` // [address:]hostport:guestport[/udp]
}

// runtimeView is the part of a VM that is known while it runs; empty else.
type runtimeView struct {
	BootID        string `json:"boot_id"`
	Backend       string `json:"backend"`
	BackendReason string `json:"backend_reason"`
	Accelerator   string `json:"accelerator"`
	KernelRelease string `json:"kernel_release"`
	MonitorPID    int64  `json:"monitor_pid"`
	VMMPID        int64  `json:"vmm_pid"`
}

type stageView struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

func viewVM(vm *bangerv1.VM) vmView {
	v := vmView{
		ID: vm.GetId(), Name: vm.GetName(), State: vm.GetState(), Cause: vm.GetCause(), Ephemeral: vm.GetEphemeral(),
		ImageDigest: vm.GetImageDigest(), CreatedAt: stamp(vm.GetCreatedAt()), ChangedAt: stamp(vm.GetChangedAt()),
		Directory: vm.GetDirectory(), DiskAllocated: vm.GetDiskAllocated(), DiskApparent: vm.GetDiskApparent(), Spec: viewSpec(vm.GetSpec()),
		runtimeView: runtimeView{
			BootID: vm.GetBootId(), Backend: vm.GetBackend(), BackendReason: vm.GetBackendReason(),
			Accelerator: vm.GetAccelerator(), KernelRelease: vm.GetKernelRelease(),
			MonitorPID: vm.GetMonitorPid(), VMMPID: vm.GetVmmPid(),
		},
		StartStages: []stageView{}, programView: viewProgram(vm),
	}
	for _, s := range vm.GetStartStages() {
		v.StartStages = append(v.StartStages, stageView{s.GetName(), s.GetElapsed().AsDuration().Seconds()})
	}
	return v
}

func viewSpec(s *bangerv1.Spec) specView {
	v := specView{
		Image: s.GetImage(), Kernel: s.GetKernel(), VCPUs: s.GetVcpus(), Memory: s.GetMemory(), DiskSize: s.GetDiskSize(),
		Init: s.GetInit(), Net: s.GetNet(), Backend: s.GetBackend(), Env: s.GetEnv(), Labels: s.GetLabels(),
		Publish: append([]string{}, s.GetPublish()...),
	}
	if v.Env == nil {
		v.Env = map[string]string{}
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return v
}

func stamp(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}

// when is stamp for people: the zero time if unknown.
func when(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
