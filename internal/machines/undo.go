package machines

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// undoTimeout bounds the whole of an undo.
const undoTimeout = 30 * time.Second

// undo is a stack of what has to be done if the work at hand fails: push right after each step.
type undo []undoStep

type undoStep struct {
	name string
	do   func(context.Context) error
}

func (u *undo) push(name string, do func(context.Context) error) {
	*u = append(*u, undoStep{name, do})
}

// run undoes all steps in reverse, whatever fails, and joins the errors to the one that made it necessary. The caller's
// cancellation does not reach it.
func (u *undo) run(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	errs := []error{err}
	for _, step := range slices.Backward(*u) {
		if e := step.do(ctx); e != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, e))
		}
	}
	if len(errs) == 1 {
		return err
	}
	return errors.Join(errs...)
}
