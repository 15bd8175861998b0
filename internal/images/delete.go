package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/fault"
	"banger/internal/store"
)

// Delete removes a name, and the image with it unless another name points to it. An image that VMs use and that has no
// other name is fault.Precondition, with the names of the VMs; a name that isn't there is fault.NotFound. It waits for
// whoever is making the image anew.
func (s *Store) Delete(ctx context.Context, ref string) error {
	m, err := s.mean(ref)
	if err != nil {
		return err
	}
	if m.digest != "" {
		return s.deleteUnnamed(ctx, m.digest)
	}
	name := m.name
	if name == "" {
		return fault.New(fault.NotFound, "no image %q here", ref).WithHint("see which there are: banger image list")
	}
	err = s.depot.Exclusive(ctx, fileOf(name), nil, func(string) error {
		var n nameFile
		path := s.namePath(name)
		err := readJSON(path, &n)
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "no image %q here", name).WithHint("see which there are: banger image list")
		}
		if err != nil {
			s.log.Warn("damaged image name removed", "image", name, "err", err)
		}
		return s.publishing(ctx, func(string) error {
			if err := s.refuseIfUsed(ctx, name, n.Digest); err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			_, err := s.collect(ctx, false)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("delete image %s: %w", name, err)
	}
	return nil
}

// deleteUnnamed removes an image that has no name.
func (s *Store) deleteUnnamed(ctx context.Context, digest string) error {
	return s.publishing(ctx, func(string) error {
		if _, err := s.ByDigest(digest); fault.Is(err, fault.NotFound) {
			return err
		}
		others, err := s.namesOf(digest)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return fault.New(fault.Precondition, "the image %s has names: %s", digest, strings.Join(others, ", ")).
				WithHint("delete them: banger image delete %s", strings.Join(others, " "))
		}
		if err := s.refuseIfUsed(ctx, "", digest); err != nil {
			return err
		}
		_, err = s.collect(ctx, false)
		return err
	})
}

// refuseIfUsed fails if VMs use an image and it has no name but this. The publish lock is held.
func (s *Store) refuseIfUsed(ctx context.Context, name, digest string) error {
	users, err := s.users(ctx)
	if err != nil {
		return fmt.Errorf("who uses the image: %w", err)
	}
	names, err := s.namesOf(digest)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(names, func(n string) bool { return n == name })
	var vms []string
	for _, u := range users {
		uses := u.Digest == digest && len(others) == 0
		if u.Digest == "" { // it is being created: what it asks for counts
			m, err := s.mean(u.Image)
			uses = err == nil && name != "" && m.name == name
		}
		if uses {
			vms = append(vms, u.VM)
		}
	}
	if len(vms) == 0 {
		return nil
	}
	return fault.New(fault.Precondition, "it is used by %s", sayVMs(vms)).WithHint("delete them first: banger vm delete %s", strings.Join(vms, " "))
}

func sayVMs(vms []string) string {
	if len(vms) == 1 {
		return "VM " + vms[0]
	}
	return "VMs " + strings.Join(vms, ", ")
}

// namesOf returns the names that point to a digest. One that can't be read points to none.
func (s *shelf) namesOf(digest string) ([]string, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(name string) bool {
		var n nameFile
		return readJSON(s.namePath(name), &n) != nil || n.Digest != digest
	}), nil
}

// unneeded is the files of a blob that nobody needs.
type unneeded struct {
	paths []string // of the filesystem, and of what is known of it
	bytes int64    // on the disk
}

// digest returns that of the blob.
func (u unneeded) digest() string { return digestOf(filepath.Base(u.paths[0])) }

// digestOf returns the digest that the name of a file in the directory of blobs stands for.
func digestOf(file string) string {
	return "sha256:" + strings.TrimSuffix(strings.TrimSuffix(file, ".ext4"), ".json")
}

// collect removes blobs that nobody needs, or only says which those are. The publish lock is held. If it can't be told what
// is needed nothing is removed.
func (s *shelf) collect(ctx context.Context, dryRun bool) ([]unneeded, error) {
	needed, err := s.needed(ctx)
	if err != nil || needed == nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.blobDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []unneeded
	var errs []error
	for _, e := range entries {
		digest, path := digestOf(e.Name()), filepath.Join(s.blobDir(), e.Name())
		if needed[digest] {
			continue
		}
		info, err := e.Info()
		if err == nil && !dryRun {
			err = os.Remove(path)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if n := len(out); n == 0 || out[n-1].digest() != digest {
			out = append(out, unneeded{})
		}
		last := &out[len(out)-1]
		last.paths, last.bytes = append(last.paths, path), last.bytes+allocated(info)
	}
	return out, errors.Join(errs...)
}

// needed returns the digests that names or VMs need; nil if a VM may need any.
func (s *shelf) needed(ctx context.Context) (map[string]bool, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, name := range names {
		var n nameFile
		if err := readJSON(s.namePath(name), &n); err != nil {
			return nil, fmt.Errorf("read image %s: %w", name, err)
		}
		needed[n.Digest] = true
	}
	users, err := s.users(ctx)
	if err != nil {
		return nil, fmt.Errorf("which images are in use: %w", err)
	}
	if slices.ContainsFunc(users, func(u store.ImageUser) bool { return u.Digest == "" }) {
		return nil, nil // as documented
	}
	for _, u := range users {
		needed[u.Digest] = true
	}
	return needed, nil
}
