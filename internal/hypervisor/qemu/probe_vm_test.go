//go:build vm

package qemu

import (
	"testing"

	"banger/internal/hostexec"
)

// The probe's guest comes to its end where guests certainly run; the control is an accelerator that is none.
func TestProbeGuest(t *testing.T) {
	t.Parallel()
	path, err := hostexec.Look(program, debianPackage)
	if err != nil {
		t.Skip(err)
	}
	if err := runProbe(t.Context(), path, TCG); err != nil {
		t.Errorf("under TCG: %v", err)
	}
	if err := runProbe(t.Context(), path, "xen"); err == nil {
		t.Error("an accelerator that cannot work passes the probe")
	}
}
