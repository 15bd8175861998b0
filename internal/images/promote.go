package images

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"banger/internal/ext4"
	"banger/internal/fault"
	"banger/internal/overlay"
	"banger/internal/progress"
)

// Promotion says what an image is made of: a VM that does not run.
type Promotion struct {
	VM     string // its name
	Digest string // of the image that it was made from
	System string // path of its system disk
	Work   string // path of its work disk, which becomes the image's /root; empty: /root stays as the image has it
}

// What the guest's agent puts on a VM's disks (package guestagent, boot and identity).
const (
	upperDir    = "upper"                 // on the system disk: the changes to the image
	seededXattr = "trusted.banger.seeded" // on the work disk's root: it has been mounted
	homePath    = "root"
)

// identityFiles belong to one machine: an image has them as the image had them that the machine was made from. The agent
// writes some at each boot, systemd the others (systemd.io/BUILDING_IMAGES).
func identityFiles() []string {
	return []string{
		"etc/hostname", "etc/machine-id", "etc/resolv.conf", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
	}
}

// room returns about how many bytes of the disk the image is going to take. The system disk doesn't count: most of a large one
// is what container engines keep there, which is left out.
func (p Promotion) room(base Image) (int64, error) {
	need := int64(spareSpace)
	for _, path := range []string{base.RootPath, p.Work} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		need += allocated(info)
	}
	return need, nil
}

// Promote makes an image of a VM's disks. The caller sees to it that nobody writes to them meanwhile; they are only read.
// A name that is taken, by the catalogue too, is fault.Exists.
func (s *Store) Promote(ctx context.Context, name string, p Promotion, sink progress.Sink) (Image, error) {
	name, err := s.NewName(name)
	if err != nil {
		return Image{}, err
	}
	base, err := s.ByDigest(p.Digest)
	if err != nil {
		return Image{}, err
	}
	err = s.depot.Exclusive(ctx, fileOf(name), sink, func(work string) error {
		if here, err := s.has(name); err != nil {
			return err
		} else if here {
			return fault.New(fault.Exists, "there is an image %s", name).
				WithHint("choose another name with --name, or delete it: banger image delete %s", name)
		}
		need, err := p.room(base)
		if err != nil {
			return err
		}
		if err := checkSpace(work, need); err != nil {
			return err
		}
		end := sink.Stage("promote " + p.VM + " to image " + name)
		err = s.promote(ctx, name, base, p, work)
		end(err)
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("promote VM %s: %w", p.VM, err)
	}
	return s.Get(name)
}

func (s *Store) promote(ctx context.Context, name string, base Image, p Promotion, work string) error {
	root, closeAll, err := openRoot(base, p)
	if err != nil {
		return err
	}
	defer closeAll()
	return s.add(ctx, work, content{
		name: name, about: nameFile{Source: "vm:" + p.VM, Config: &base.Config, Platform: base.Platform},
		tar: func(ctx context.Context, w io.Writer) error {
			return overlay.WriteTar(ctx, w, root, overlay.Options{
				Restore: identityFiles(), Rewrite: map[string]func([]byte) []byte{"etc/hosts": withoutOwnName},
			})
		},
	})
}

// withoutOwnName takes the line out of a hosts file that the agent writes for the machine's own name.
func withoutOwnName(hosts []byte) []byte {
	var out []byte
	for line := range bytes.Lines(hosts) {
		if fields := bytes.Fields(line); len(fields) == 0 || string(fields[0]) != "127.0.1.1" {
			out = append(out, line...)
		}
	}
	return out
}

// openRoot opens the filesystems that a VM's root consists of. A disk that has never been mounted counts for nothing.
func openRoot(base Image, p Promotion) (root overlay.Root, closeAll func(), err error) {
	var files []*os.File
	shut := func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}
	defer func() {
		if err != nil {
			shut()
		}
	}()
	open := func(what, path string) (*ext4.FS, error) {
		fsys, f, err := openFilesystem(path)
		if err != nil {
			return nil, fmt.Errorf("read the %s: %w", what, err)
		}
		files = append(files, f)
		return fsys, nil
	}
	if root.Base, err = open("image", base.RootPath); err != nil {
		return root, nil, err
	}
	system, err := open("system disk", p.System)
	if err != nil {
		return root, nil, err
	}
	switch _, err := system.Lookup(upperDir); {
	case err == nil:
		root.Upper, root.UpperDir = system, upperDir
	case !fault.Is(err, fault.NotFound):
		return root, nil, fmt.Errorf("read the system disk: %w", err)
	}
	if p.Work == "" {
		return root, shut, nil
	}
	home, err := open("work disk", p.Work)
	if err != nil {
		return root, nil, err
	}
	top, err := home.Root()
	if err != nil {
		return root, nil, fmt.Errorf("read the work disk: %w", err)
	}
	attrs, err := home.Xattrs(top)
	if err != nil {
		return root, nil, fmt.Errorf("read the work disk: %w", err)
	}
	if _, seeded := attrs[seededXattr]; seeded {
		root.Mounts = map[string]*ext4.FS{homePath: home}
	}
	return root, shut, nil
}

func openFilesystem(path string) (*ext4.FS, *os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var fsys *ext4.FS
		if fsys, err = ext4.Open(f, info.Size()); err == nil {
			return fsys, f, nil
		}
	}
	_ = f.Close() // only read
	return nil, nil, err
}
