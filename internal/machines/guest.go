package machines

import (
	"context"
	"net"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
)

// Guest returns the way to the agent of a running VM.
// A suspended one is started.
func (s *Service) Guest(ctx context.Context, ref string) (microvm.VM, *guestlink.Client, error) {
	vm, a, err := reach(ctx, &s.core, ref)
	if err != nil {
		return vm, nil, err
	}
	return vm, guestlink.NewClient(a.client), nil
}

// Console attaches to the serial console of a running VM.
func (s *Service) Console(ctx context.Context, ref string) (net.Conn, error) {
	_, a, err := s.running(ctx, ref)
	if err != nil {
		return nil, err
	}
	return a.client.Console(ctx)
}

// Logs returns the console log of a VM: the file, and if the VM runs and follow is set, the stream that begins with the
// file's content and goes on.
func (s *Service) Logs(ctx context.Context, ref string, follow bool) (path string, stream net.Conn, err error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return "", nil, err
	}
	if a := s.table.attachment(vm.ID); follow && a != nil {
		stream, err = a.client.Follow(ctx)
		if err == nil {
			return "", stream, nil
		}
		select {
		case <-a.done: // it ended this moment: the file has it all
		default:
			return "", nil, err
		}
	}
	return s.dirsOf(vm.ID).ConsoleLog(), nil, nil
}

// running returns a VM that can be talked to, and its monitor.
func (s *core) running(ctx context.Context, ref string) (microvm.VM, *attachment, error) {
	vm, err := s.resolve(ctx, ref)
	if err != nil {
		return vm, nil, err
	}
	a := s.table.attachment(vm.ID)
	if a != nil {
		st, _ := a.get()
		switch {
		case st.Paused:
			return vm, nil, fault.New(fault.Precondition, "VM %s is paused", vm.Name).
				WithHint("let it go on: banger vm resume %s", vm.Name)
		case st.Phase == monitorlink.Ready:
			return vm, a, nil
		}
	}
	return vm, nil, notRunning(vm)
}

func notRunning(vm microvm.VM) error {
	e := fault.New(fault.Precondition, "VM %s is not running: it is %s", vm.Name, vm.State)
	switch {
	case vm.State == microvm.Running: // its end has been seen and is about to be recorded
		e = fault.New(fault.Precondition, "VM %s is not running: it has just ended", vm.Name)
	case vm.Cause != "":
		e = fault.New(fault.Precondition, "VM %s is not running: it is %s (%s)", vm.Name, vm.State, vm.Cause)
	}
	return e.WithHint("start it: banger start %s", vm.Name)
}
