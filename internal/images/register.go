package images

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/fault"
	"banger/internal/progress"
	"banger/internal/rootfs"
)

// registeredFile is a root filesystem that stays where the user has it.
type registeredFile struct {
	Path    string    `json:"path"`
	ModTime time.Time `json:"mod_time"`
}

// check reports whether the file is what it was when it was registered, as far as its size and time tell.
func (f registeredFile) check(size int64) error {
	info, err := os.Stat(f.Path)
	if err != nil {
		return fault.New(fault.Precondition, "the registered file can't be used: %w", err).WithHint("put it back, or register another one")
	}
	if !info.Mode().IsRegular() || info.Size() != size || !info.ModTime().Equal(f.ModTime) {
		return fault.New(fault.Precondition, "the registered file %s has changed since it was registered", f.Path).
			WithHint("register it again: banger image register --name NAME --rootfs %s", f.Path)
	}
	return nil
}

// RegisterRequest names a root filesystem that stays where it is.
type RegisterRequest struct {
	Name string
	Root string // absolute path of an ext4 filesystem in a file
	// Kernel is the name of the kernel that it boots with unless a VM asks for another; empty: none. The caller has seen to it
	// that there is one of that name.
	Kernel string
}

// Register makes an image of a file that stays where it is. The file must not change as long as VMs use it: this is
// checked by its size and time at each start.
func (s *Store) Register(ctx context.Context, req RegisterRequest, sink progress.Sink) (Image, error) {
	if req.Name == "" {
		return Image{}, fault.New(fault.Invalid, "a registered image needs a name").WithHint("give it one: --name NAME")
	}
	name, err := s.NewName(req.Name)
	if err != nil {
		return Image{}, err
	}
	if err := checkRegistrable(req.Root); err != nil {
		return Image{}, fmt.Errorf("register image %s: %w", name, err)
	}
	err = s.depot.Exclusive(ctx, fileOf(name), sink, func(string) error {
		end := sink.Stage("read " + filepath.Base(req.Root))
		n, b, err := describe(ctx, req)
		end(err)
		if err != nil {
			return err
		}
		return s.publish(ctx, name, "", b, n)
	})
	if err != nil {
		return Image{}, fmt.Errorf("register image %s: %w", name, err)
	}
	return s.byName(name)
}

// describe says what is to be recorded of a file.
func describe(ctx context.Context, req RegisterRequest) (nameFile, blobFile, error) {
	before, err := os.Stat(req.Root)
	if err != nil {
		return nameFile{}, blobFile{}, err
	}
	digest, err := rootfs.HashFile(ctx, req.Root)
	if err != nil {
		return nameFile{}, blobFile{}, err
	}
	file := registeredFile{Path: req.Root, ModTime: before.ModTime()}
	if err := file.check(before.Size()); err != nil {
		return nameFile{}, blobFile{}, fault.New(fault.Busy, "the file %s is being written to", req.Root)
	}
	source, now := "file:"+req.Root, time.Now().UTC().Truncate(time.Second)
	return nameFile{Digest: digest, Created: now, Source: source, Kernel: req.Kernel},
		blobFile{Size: before.Size(), Created: now, Source: source, File: &file}, nil
}

// Where an ext4 filesystem says what it is (Documentation/filesystems/ext4/super.rst).
const (
	superMagicAt = 1024 + 0x38
	superMagic   = 0xef53
)

// checkRegistrable refuses what is no file with an ext4 filesystem.
func checkRegistrable(path string) error {
	if !filepath.IsAbs(path) {
		return fault.New(fault.Invalid, "the path %.200q is not absolute", path)
	}
	info, err := os.Stat(path) // first: opening a pipe would wait for its writer
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no file %s", path)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fault.New(fault.Invalid, "%s is not a file", path)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Denied, "%w", err)
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], superMagicAt); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if binary.LittleEndian.Uint16(magic[:]) != superMagic {
		return fault.New(fault.Invalid, "%s holds no ext4 filesystem", path).
			WithHint("make one of a tar of the root instead: banger image import FILE")
	}
	return nil
}
