//go:build vm

package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
	"banger/internal/rpcclient"
)

// client is a user of the daemon.
type client struct {
	*rpcclient.Client

	real bool // its VMs are real
}

// spec is the cheapest VM.
func (c client) spec(net string) *bangerv1.Spec {
	if c.real {
		return &bangerv1.Spec{Vcpus: 1, Init: "agent", Net: net}
	}
	return &bangerv1.Spec{
		Image: "dummy", Kernel: "dummy", Vcpus: 1, Memory: microvm.MinMemory, DiskSize: microvm.MinDiskSize,
		Init: "agent", Net: net, Backend: "fake",
	}
}

// last reads a stream of events to its end and returns the VM in it.
func last(s *connect.ServerStreamForClient[bangerv1.Event], err error) (*bangerv1.VM, error) {
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // s.Err tells
	var vm *bangerv1.VM
	for s.Receive() {
		if v := s.Msg().GetVm(); v != nil {
			vm = v
		}
	}
	if s.Err() == nil && vm == nil {
		return nil, errors.New("the call ended without a result")
	}
	return vm, s.Err()
}

func (c client) create(ctx context.Context, name, net string, start bool) (*bangerv1.VM, error) {
	return last(c.VMs.Create(ctx, connect.NewRequest(&bangerv1.CreateRequest{Name: name, Spec: c.spec(net), Start: start})))
}

func (c client) start(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.VMs.Start(ctx, connect.NewRequest(&bangerv1.StartRequest{Vm: vm})))
}

func (c client) stop(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.VMs.Stop(ctx, connect.NewRequest(&bangerv1.StopRequest{Vm: vm, Timeout: durationpb.New(5 * time.Second)})))
}

func (c client) restart(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.VMs.Restart(ctx, connect.NewRequest(&bangerv1.RestartRequest{Vm: vm, Timeout: durationpb.New(5 * time.Second)})))
}

func (c client) kill(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.VMs.Kill(ctx, connect.NewRequest(&bangerv1.KillRequest{Vm: vm})))
}

func (c client) pause(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.VMs.Pause(ctx, connect.NewRequest(&bangerv1.PauseRequest{Vm: vm})))
}

func (c client) resume(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.VMs.Resume(ctx, connect.NewRequest(&bangerv1.ResumeRequest{Vm: vm})))
}

// fork makes a copy.
func (c client) fork(ctx context.Context, vm string) (*bangerv1.VM, error) {
	s, err := c.Snapshots.Fork(ctx, connect.NewRequest(&bangerv1.ForkRequest{Vm: vm, Count: 1}))
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // s.Err tells
	var made []*bangerv1.VM
	for s.Receive() {
		made = append(made, s.Msg().GetForks().GetVms()...)
		for _, text := range s.Msg().GetForks().GetErrors() {
			err = errors.Join(err, errors.New(text))
		}
	}
	if err = errors.Join(err, s.Err()); err == nil && len(made) != 1 {
		err = fmt.Errorf("there are %d copies", len(made))
	}
	return nil, err
}

const snapshot = "point"

func (c client) snapshot(ctx context.Context, vm string) (*bangerv1.VM, error) {
	s, err := c.Snapshots.CreateSnapshot(ctx, connect.NewRequest(&bangerv1.CreateSnapshotRequest{Vm: vm, Name: snapshot}))
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // s.Err tells
	for s.Receive() {
	}
	return nil, s.Err()
}

func (c client) restore(ctx context.Context, vm string) (*bangerv1.VM, error) {
	return last(c.Snapshots.RestoreSnapshot(ctx, connect.NewRequest(&bangerv1.RestoreSnapshotRequest{Vm: vm, Name: snapshot, Force: true})))
}

func (c client) deleteSnapshot(ctx context.Context, vm string) error {
	_, err := c.Snapshots.DeleteSnapshot(ctx, connect.NewRequest(&bangerv1.DeleteSnapshotRequest{Vm: vm, Name: snapshot}))
	return err
}

func (c client) delete(ctx context.Context, vm string, force bool) error {
	_, err := last(c.VMs.Delete(ctx, connect.NewRequest(&bangerv1.DeleteRequest{Vm: vm, Force: force})))
	return err
}

func (c client) get(ctx context.Context, vm string) (*bangerv1.VM, error) {
	res, err := c.VMs.Get(ctx, connect.NewRequest(&bangerv1.GetRequest{Vm: vm}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetVm(), nil
}

func (c client) list(ctx context.Context) ([]*bangerv1.VM, error) {
	res, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetVms(), nil
}

// command runs on the host: it may do nothing.
func command() *bangerv1.ExecSpec { return &bangerv1.ExecSpec{Args: []string{"true"}, Dir: "/"} }

// exec runs a command in a VM that must succeed.
func (c client) exec(ctx context.Context, vm string) error {
	return attach(c.VMs.Exec(ctx), &bangerv1.AttachStart{Target: &bangerv1.AttachStart_Vm{Vm: vm}, Exec: command()})
}

// runRemove is run --rm.
func (c client) runRemove(ctx context.Context, name, net string) error {
	create := &bangerv1.CreateRequest{Name: name, Spec: c.spec(net)}
	return attach(c.VMs.Run(ctx), &bangerv1.AttachStart{
		Target: &bangerv1.AttachStart_Create{Create: create}, Exec: command(), Remove: true,
	})
}

func attach(s *connect.BidiStreamForClient[bangerv1.AttachRequest, bangerv1.AttachResponse], start *bangerv1.AttachStart) error {
	defer s.CloseResponse() //nolint:errcheck // Receive tells
	err := s.Send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Start{Start: start}})
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: Receive says why
		return err
	}
	_ = s.CloseRequest()
	var exit *bangerv1.ExitStatus
	for {
		res, err := s.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if e := res.GetExit(); e != nil {
			exit = e
		}
	}
	if exit == nil || exit.GetCode() != 0 {
		return fmt.Errorf("the command ended with %v", exit)
	}
	return nil
}
