//go:build !amd64

package qemu

import (
	"context"
	"errors"
)

// measureTSC fails: this host has no time stamp counter.
func measureTSC(context.Context) (int, error) {
	return 0, errors.New("no time stamp counter on this architecture")
}
