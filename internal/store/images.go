package store

import (
	"context"

	"banger/internal/microvm"
)

// ImageUser is a VM seen from the image that it uses.
type ImageUser struct {
	VM     string // its name
	ID     microvm.ID
	Image  string // the name or reference that was asked for
	Digest string // empty while the VM is being created and has none yet: it may come to use any image
}

// ImageUsers returns every VM with the image that it uses, oldest first. A VM is among them from before its image is chosen
// until its disks are gone. Spares are not: they go with the image.
func (s *Store) ImageUsers(ctx context.Context) ([]ImageUser, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT name, id, spec ->> '$.Image', image_digest FROM vms
		 WHERE name NOT LIKE '`+microvm.SparePrefix+`%' ORDER BY created_at, id`)
	if err != nil {
		return nil, storageError("list users of images", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var users []ImageUser
	for rows.Next() {
		var u ImageUser
		if err := rows.Scan(&u.VM, &u.ID, &u.Image, &u.Digest); err != nil {
			return nil, storageError("list users of images", err)
		}
		users = append(users, u)
	}
	return users, storageError("list users of images", rows.Err())
}
