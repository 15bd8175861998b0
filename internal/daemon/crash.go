//go:build !fakevmm

package daemon

import "banger/internal/machines"

// breakable is what a test build puts between the VM service and what it uses: nothing here.
func breakable(st machines.Store, so machines.Sources, h machines.Host) (machines.Store, machines.Sources, machines.Host) {
	return st, so, h
}
