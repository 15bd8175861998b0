package microvm

import (
	"strings"

	"banger/internal/fault"
)

// Resolve finds the VM that a reference means: a name, an id, or an unambiguous prefix of an id, in this order.
func Resolve(vms []VM, ref string) (VM, error) {
	if ref == "" {
		return VM{}, fault.New(fault.Invalid, "no VM named").WithHint("give a name, an id, or the beginning of an id")
	}
	var prefixed []VM
	for i := range vms {
		vm := &vms[i]
		if vm.Name == ref && vm.State != Deleting {
			return *vm, nil
		}
		if strings.HasPrefix(string(vm.ID), ref) { // all ids are of one length, so a whole id is the prefix of one VM's
			prefixed = append(prefixed, *vm)
		}
	}
	switch len(prefixed) {
	case 0:
		return VM{}, fault.New(fault.NotFound, "there is no VM %q", clip(ref)).WithHint("list them: banger ps")
	case 1:
		return prefixed[0], nil
	}
	names := make([]string, 0, len(prefixed))
	for _, vm := range prefixed {
		names = append(names, vm.Name)
	}
	return VM{}, fault.New(fault.Invalid, "%q is the beginning of the ids of several VMs: %s", clip(ref), strings.Join(names, ", ")).
		WithHint("give more of the id, or the name")
}
