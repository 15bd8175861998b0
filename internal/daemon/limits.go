package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"banger/internal/cgroup"
	"banger/internal/rpcapi"
)

// checkLimits says which limits of VMs the host's kernel enforces. VMs work without.
func checkLimits() rpcapi.Check {
	place, missing := cgroup.Find()
	check := rpcapi.Check{Name: "limits", Result: rpcapi.Pass, Detail: "each VM has a cgroup for " + place.String()}
	if len(missing) == 0 {
		return check
	}
	var reasons []string
	for _, c := range slices.Sorted(maps.Keys(missing)) {
		reasons = append(reasons, fmt.Sprintf("%s: %s", c, missing[c]))
	}
	check.Result = rpcapi.Warn
	check.Detail += "; not enforced: " + strings.Join(reasons, "; ")
	check.Fix = "run the daemon in a cgroup that is delegated to its user, such as a systemd user service with Delegate=yes"
	return check
}
