package rpcapi

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/guestproto"
	"banger/internal/machines"
	"banger/internal/microvm"
	"banger/internal/progress"
)

func toVM(info machines.Info) *bangerv1.VM {
	vm := &bangerv1.VM{
		Id: string(info.ID), Name: info.Name, State: string(info.State), Cause: info.Cause,
		Spec: toSpec(info.Spec), ImageDigest: info.ImageDigest, Ephemeral: info.Ephemeral,
		CreatedAt: toTime(info.CreatedAt), ChangedAt: toTime(info.ChangedAt), BootId: info.BootID,
		Accelerator: info.Accel, Backend: info.Backend, BackendReason: info.Reason,
		MonitorPid: int64(info.Status.MonitorPid), VmmPid: int64(info.Status.VMMPid),
		KernelRelease: info.Status.KernelRelease, Directory: info.Directory,
		DiskAllocated: info.DiskAllocated, DiskApparent: info.DiskApparent, SnapshotsAllocated: info.SnapshotsAllocated,
	}
	vm.Main, vm.ExposedPorts = toProcess(info.Spec.Main), info.Spec.ImageConfig.Ports
	for _, p := range info.Status.Published {
		vm.Published = append(vm.Published, &bangerv1.PublishedPort{
			Protocol: p.Protocol, HostAddress: p.Host.String(), GuestPort: uint32(p.GuestPort),
		})
	}
	for _, st := range info.Status.Stages {
		vm.StartStages = append(vm.StartStages, &bangerv1.Stage{Name: st.Name, Elapsed: durationpb.New(st.Elapsed)})
	}
	return vm
}

func toProcess(p *microvm.Process) *bangerv1.Process {
	if p == nil {
		return nil
	}
	return &bangerv1.Process{Args: p.Args, Dir: p.Dir, User: p.User}
}

func fromProcess(p *bangerv1.Process) *microvm.Process {
	if p == nil {
		return nil
	}
	return &microvm.Process{Args: p.GetArgs(), Dir: p.GetDir(), User: p.GetUser()}
}

func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func toSpec(s microvm.Spec) *bangerv1.Spec {
	var publish []string
	for _, p := range s.Publish {
		publish = append(publish, p.String())
	}
	return &bangerv1.Spec{
		Publish: publish,
		Image:   s.Image, Kernel: s.Kernel, Vcpus: int32(s.VCPUs), Memory: s.Memory, DiskSize: s.DiskSize, // <= 32
		Init: string(s.Init), Net: string(s.Net), Backend: s.Backend, Env: s.Env, Labels: s.Labels,
		Ttl: toDuration(s.TTL), IdleTimeout: toDuration(s.IdleTimeout), AutoSuspend: toDuration(s.AutoSuspend),
		CpuWeight: int32(s.Weights.CPU), IoWeight: int32(s.Weights.IO), // <= 10000
	}
}

func fromSpec(s *bangerv1.Spec) microvm.Spec {
	return microvm.Spec{
		Image: s.GetImage(), Kernel: s.GetKernel(), VCPUs: int(s.GetVcpus()), Memory: s.GetMemory(),
		DiskSize: s.GetDiskSize(), Init: microvm.Init(s.GetInit()), Net: microvm.Net(s.GetNet()),
		Backend: s.GetBackend(), Env: s.GetEnv(), Labels: s.GetLabels(),
		Lifetime: microvm.Lifetime{
			TTL: s.GetTtl().AsDuration(), IdleTimeout: s.GetIdleTimeout().AsDuration(), AutoSuspend: s.GetAutoSuspend().AsDuration(),
		},
		Weights: microvm.Weights{CPU: int(s.GetCpuWeight()), IO: int(s.GetIoWeight())},
	}
}

// toDuration leaves out what is not set.
func toDuration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func toProgress(u progress.Update) *bangerv1.Progress {
	p := &bangerv1.Progress{
		Stage: u.Stage, Detail: u.Detail, Current: u.Current, Total: u.Total, Unit: u.Unit, Ended: u.Ended, Error: u.Err, Warning: u.Warning,
	}
	if u.Ended {
		p.Elapsed = durationpb.New(u.Elapsed)
	}
	return p
}

// fromExec translates a command; vmEnv goes before the command's own environment, which therefore wins.
func fromExec(e *bangerv1.ExecSpec, vmEnv map[string]string) (guestproto.ExecSpec, error) {
	rows, cols, err := fromSize(e.GetSize())
	if err != nil {
		return guestproto.ExecSpec{}, err
	}
	if err := microvm.ValidateEnvWords(e.GetEnv()); err != nil {
		return guestproto.ExecSpec{}, err
	}
	env := make([]string, 0, len(vmEnv)+len(e.GetEnv()))
	for k, v := range vmEnv {
		env = append(env, k+"="+v)
	}
	return guestproto.ExecSpec{
		Args: e.GetArgs(), Env: append(env, e.GetEnv()...), Dir: e.GetDir(), User: e.GetUser(),
		TTY: e.GetTty(), Rows: rows, Cols: cols, Term: e.GetTerm(), Stdin: e.GetStdin(),
	}, nil
}

func fromSize(s *bangerv1.WindowSize) (rows, cols uint16, err error) {
	const most = 1<<16 - 1 // struct winsize, ioctl_tty(2)
	if s.GetRows() > most || s.GetCols() > most {
		return 0, 0, fault.New(fault.Invalid, "window size %dx%d is too large", s.GetRows(), s.GetCols())
	}
	return uint16(s.GetRows()), uint16(s.GetCols()), nil // checked above
}
