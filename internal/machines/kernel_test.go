//go:build fakevmm

package machines_test

import (
	"testing"

	"banger/internal/machines"
	"banger/internal/microvm"
)

// The kernel that is asked for wins, then the image's own, then the default.
func TestCreateTakesTheImagesKernel(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for want, spec := range map[string]microvm.Spec{
		"kernel": {},
		"own":    {Image: "with-kernel"},
		"asked":  {Image: "with-kernel", Kernel: "asked"},
	} {
		vm, err := b.svc.Create(t.Context(), machines.CreateRequest{Spec: spec}, nil)
		if err != nil || vm.Spec.Kernel != want {
			t.Errorf("%+v: kernel %q, %v; want %q", spec, vm.Spec.Kernel, err, want)
		}
	}
}
