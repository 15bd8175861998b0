package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"banger/internal/fault"
)

// Item is an image in the list of all.
type Item struct {
	Image

	// What the image takes on the disk, in bytes: Unique goes when it is deleted, Shared is counted with every image that has
	// the same filesystem. Holes don't count. Of a registered image's own file nothing counts.
	Unique, Shared int64
	Users          []string // VMs that use it, by name
	Damaged        string   // why it can't be used; empty: it can
}

// Items returns every image that takes up space, by name; those without one are last. One that is damaged is in it, too.
func (s *shelf) Items(ctx context.Context) ([]Item, error) {
	names, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	users, err := s.users(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var items []Item
	sharers := map[string]int{} // images by filesystem
	add := func(img Image, err error) {
		it := Item{Image: img}
		if err != nil {
			it.Damaged = err.Error()
		}
		sharers[img.Digest]++
		items = append(items, it)
	}
	for _, name := range names {
		img, err := s.byName(name)
		if err != nil {
			img.Name = name
			s.log.Warn("damaged image", "image", name, "err", err)
		}
		add(img, err)
	}
	unnamed, err := s.digests()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	for _, digest := range unnamed {
		if sharers[digest] == 0 {
			img, err := s.ByDigest(digest)
			img.Digest = digest
			add(img, err)
		}
	}
	for i := range items {
		account(s, &items[i], sharers[items[i].Digest])
		for _, u := range users {
			if u.Digest == items[i].Digest && u.Digest != "" {
				items[i].Users = append(items[i].Users, u.VM)
			}
		}
	}
	slices.SortStableFunc(items, func(a, b Item) int {
		if (a.Name == "") != (b.Name == "") {
			return strings.Compare(b.Name, a.Name)
		}
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Digest, b.Digest))
	})
	return items, nil
}

// Item returns one of the images, by a name, reference or digest.
func (s *Store) Item(ctx context.Context, ref string) (Item, error) {
	m, err := s.mean(ref)
	if err != nil {
		return Item{}, err
	}
	items, err := s.Items(ctx)
	if err != nil {
		return Item{}, err
	}
	for _, it := range items {
		if m.name != "" && it.Name == m.name || m.digest != "" && it.Digest == m.digest {
			return it, nil
		}
	}
	return Item{}, fault.New(fault.NotFound, "no image %q here", ref).
		WithHint("see which there are: banger image list; fetch it: banger image pull %s", ref)
}

// Available returns the entries of the catalogue that are not here, by name.
func (s *Store) Available(ctx context.Context) ([]Entry, error) {
	if err := s.fetchCatalog(ctx); err != nil {
		return nil, err
	}
	entries, err := s.Catalog()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(entries, func(e Entry) bool {
		here, err := s.has(e.Name)
		return here || err != nil
	}), nil
}

// account fills in what an image takes on the disk.
func account(s *shelf, it *Item, sharers int) {
	path, err := s.blobPath(it.Digest)
	if err != nil {
		return
	}
	var bytes int64
	for _, file := range []string{path, metaPath(path)} {
		if info, err := os.Stat(file); err == nil {
			bytes += allocated(info)
		}
	}
	if sharers > 1 {
		it.Shared = bytes
	} else {
		it.Unique = bytes
	}
}

// digests returns those of all blobs, once each.
func (s *shelf) digests() ([]string, error) {
	entries, err := os.ReadDir(s.blobDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		digest := digestOf(e.Name())
		if _, err := s.blobPath(digest); err == nil && (len(out) == 0 || out[len(out)-1] != digest) {
			out = append(out, digest)
		}
	}
	return out, nil
}

// Usage returns how many bytes the images take on the disk: holes don't count.
func (s *shelf) Usage() (int64, error) {
	entries, err := os.ReadDir(s.blobDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("measure images: %w", err)
	}
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += allocated(info)
		}
	}
	return total, nil
}
