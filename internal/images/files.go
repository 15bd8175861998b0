package images

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/oci"
)

// nameFile is what names/<name>.json holds. Images that have the same filesystem may differ in all but the digest.
type nameFile struct {
	Digest   string      `json:"digest"`
	Created  time.Time   `json:"created,omitzero"`
	Source   string      `json:"source,omitempty"` // empty: as the blob says
	Config   *oci.Config `json:"config,omitempty"` // nil: as the blob says
	Manifest string      `json:"manifest,omitempty"`
	Platform string      `json:"platform,omitempty"`
	Kernel   string      `json:"kernel,omitempty"`
}

// blobFile is what blobs/sha256/<hex>.json holds.
type blobFile struct {
	Size       int64           `json:"size"`
	Created    time.Time       `json:"created"`
	Source     string          `json:"source"`
	HasSystemd bool            `json:"has_systemd"`
	Config     oci.Config      `json:"config"`
	File       *registeredFile `json:"file,omitempty"` // nil: <hex>.ext4
}

// publishKey is the key of the lock for what appears and goes. No image can have this name.
const publishKey = "publish"

func (s *shelf) publishing(ctx context.Context, fn func(work string) error) error {
	return s.depot.Exclusive(ctx, publishKey, nil, fn)
}

func (s *shelf) blobDir() string             { return filepath.Join(s.dir, "blobs", "sha256") }
func (s *shelf) nameDir() string             { return filepath.Join(s.dir, "names") }
func (s *shelf) namePath(name string) string { return filepath.Join(s.nameDir(), fileOf(name)+".json") }
func metaPath(blob string) string            { return strings.TrimSuffix(blob, ".ext4") + ".json" }

func (s *shelf) blobPath(digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != 32 || sum != strings.ToLower(sum) {
		return "", fault.New(fault.Invalid, "bad image digest %.100q", digest).WithHint("write all of it: sha256: and 64 characters")
	}
	return filepath.Join(s.blobDir(), sum+".ext4"), nil
}

// publish puts a finished filesystem into the store and points the name at it. In this order: the blob, what is known of
// it, the name. The file is on stable storage already; empty means that it is no file of the store's.
// What the name pointed at before goes when Recover or Prune finds it unused.
func (s *shelf) publish(ctx context.Context, name, file string, b blobFile, n nameFile) error {
	to, err := s.blobPath(n.Digest)
	if err != nil {
		return err
	}
	err = s.publishing(ctx, func(work string) error {
		for _, dir := range []string{s.blobDir(), s.nameDir()} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		if err := s.publishBlob(work, file, to, b); err != nil {
			return err
		}
		if err := errors.Join(syncDir(s.blobDir()), writeJSON(work, s.namePath(name), n)); err != nil {
			return err
		}
		return syncDir(s.nameDir())
	})
	if err != nil {
		return fmt.Errorf("publish image: %w", err)
	}
	return nil
}

// publishBlob puts a filesystem and what is known of it in place, unless the same is there. The publish lock is held.
func (s *shelf) publishBlob(work, file, to string, b blobFile) error {
	st, err := os.Stat(to)
	here := err == nil && st.Size() == b.Size
	if b.File != nil && here {
		return nil // a copy of the store's own is better than the user's file
	}
	if file != "" && !here {
		if err := os.Rename(file, to); err != nil {
			return err
		}
	}
	var old blobFile
	if here && readJSON(metaPath(to), &old) == nil && old.File == nil && old.Size == b.Size {
		return nil
	}
	return writeJSON(work, metaPath(to), b)
}

func (s *shelf) names() ([]string, error) {
	entries, err := os.ReadDir(s.nameDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if file, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			if name, ok := nameOf(file); ok {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fault.New(fault.Corrupt, "%s is damaged: %w", filepath.Base(path), err)
	}
	return nil
}

// writeJSON replaces a file by a rename from the directory work.
func writeJSON(work, path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(work, filepath.Base(path))
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// allocated returns the bytes that a file takes on the disk (stat(2) counts blocks of 512 bytes).
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
