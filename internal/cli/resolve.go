package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// resolve finds the VM that a reference names in a listing: by its name, else by its id, else by the beginning of its id.
func resolve(vms []*bangerv1.VM, ref string) (*bangerv1.VM, error) {
	var byPrefix []*bangerv1.VM
	for _, vm := range vms {
		if vm.GetName() == ref {
			return vm, nil
		}
	}
	for _, vm := range vms {
		if vm.GetId() == ref {
			return vm, nil
		}
		if ref != "" && strings.HasPrefix(vm.GetId(), ref) {
			byPrefix = append(byPrefix, vm)
		}
	}
	switch len(byPrefix) {
	case 0:
		return nil, fault.New(fault.NotFound, "there is no VM %q", ref).WithHint("see which there are: banger ps")
	case 1:
		return byPrefix[0], nil
	}
	names := make([]string, len(byPrefix))
	for i, vm := range byPrefix {
		names[i] = vm.GetId() + " (" + vm.GetName() + ")"
	}
	return nil, fault.New(fault.Invalid, "%q is the beginning of more than one id: %s", ref, strings.Join(names, ", ")).
		WithHint("write more of the id, or the name")
}

// target is one of the VMs that a command takes.
type target struct {
	ref string // as given
	vm  *bangerv1.VM
	err error
}

// targets resolves references against one listing and drops those that mean a VM a second time.
func targets(ctx context.Context, client *rpcclient.Client, refs []string) ([]target, error) {
	list, err := client.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(refs))
	var out []target
	for _, ref := range refs {
		vm, err := resolve(list.Msg.GetVms(), ref)
		key := ref
		if err == nil {
			key = vm.GetId()
		}
		if !seen[key] {
			seen[key] = true
			out = append(out, target{ref, vm, err})
		}
	}
	return out, nil
}

// maxAtOnce bounds how many VMs one command works on at a time.
const maxAtOnce = 16

// forEach calls work for every target that was resolved, several at a time; when all are done it ends the display and
// calls tell for each that succeeded, in the order given. A failure does not stop the others: it is told with the verb
// ("stop \"a\": why"), and the result is then exit status 125.
func forEach[T any](ctx context.Context, a *app, d *display, verb string, all []target, work func(*bangerv1.VM) (T, error), tell func(T) error) error {
	results := make([]T, len(all))
	slots := make(chan struct{}, maxAtOnce)
	var workers sync.WaitGroup
	for i := range all {
		if all[i].err != nil {
			continue
		}
		workers.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i], all[i].err = work(all[i].vm)
		})
	}
	workers.Wait()
	d.keep()
	if err := ctx.Err(); err != nil {
		return err
	}
	failed := false
	for i, t := range all {
		if t.err == nil {
			if err := tell(results[i]); err != nil {
				return err
			}
			continue
		}
		failed = true
		a.sayError(&fault.Error{
			Kind: fault.KindOf(t.err), Message: fmt.Sprintf("%s %q", verb, t.ref), Hint: hintOf(t.err), Err: t.err,
		})
	}
	if failed {
		return exitStatus(exitFailed)
	}
	return nil
}

// owner returns whose stages a display shows: only with several VMs need they be told apart.
func owner(all []target, vm *bangerv1.VM) string {
	if len(all) < 2 {
		return ""
	}
	return vm.GetName()
}
