package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/microvm"
)

// weightFlags are the shares of the host that a VM gets. 0: not given.
type weightFlags struct{ cpu, io int32 }

func (w *weightFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Int32Var(&w.cpu, "cpu-weight", 0, "`share` of the host's CPUs when others want them too: 1 to 10000, normally 100")
	f.Int32Var(&w.io, "io-weight", 0, "`share` of the host's disks, likewise")
}

// check refuses a weight that is given and none.
func (w *weightFlags) check(cmd *cobra.Command) error {
	for name, value := range map[string]int32{"cpu-weight": w.cpu, "io-weight": w.io} {
		if cmd.Flags().Changed(name) && (value < microvm.MinWeight || value > microvm.MaxWeight) {
			return usagef("bad --%s %d", name, value).withHint("use %d to %d", microvm.MinWeight, microvm.MaxWeight)
		}
	}
	return nil
}
