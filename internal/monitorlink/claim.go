package monitorlink

import (
	"context"

	"banger/internal/microvm"
)

// ClaimSpec is what a VM that was a spare gets of its own. Its machine id and boot id are those that it has been given when
// it was restored: no other VM has them.
type ClaimSpec struct {
	Hostname string
	Publish  []microvm.Publish
	microvm.Lifetime
	Weights microvm.Weights // 0: as they are
}

// Claim makes a spare a VM of somebody's, and returns when its guest goes on. After an error it is good for nothing.
// fault.Precondition: it is no spare, or is one no more; fault.Exists: a port is taken.
func (c *Client) Claim(ctx context.Context, spec ClaimSpec) error {
	conn, err := c.request(ctx, Request{Op: OpClaim, Claim: &spec})
	if err != nil {
		return err
	}
	return conn.Close()
}
