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
)

// nameFile is what names/<name>.json holds.
type nameFile struct {
	Digest string `json:"digest"`
}

// blobFile is what blobs/sha256/<hex>.json holds.
type blobFile struct {
	Size       int64     `json:"size"`
	Created    time.Time `json:"created"`
	Source     string    `json:"source"`
	HasSystemd bool      `json:"has_systemd"`
	Config     RunConfig `json:"config"`
}

// publishKey is the key of the lock for what appears and goes. No image can have this name.
const publishKey = "publish"

func (s *Store) publishing(ctx context.Context, fn func(work string) error) error {
	return s.depot.Exclusive(ctx, publishKey, nil, fn)
}

func (s *Store) blobDir() string             { return filepath.Join(s.dir, "blobs", "sha256") }
func (s *Store) nameDir() string             { return filepath.Join(s.dir, "names") }
func (s *Store) namePath(name string) string { return filepath.Join(s.nameDir(), name+".json") }
func metaPath(blob string) string            { return strings.TrimSuffix(blob, ".ext4") + ".json" }

func (s *Store) blobPath(digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != 32 || sum != strings.ToLower(sum) {
		return "", fault.New(fault.Invalid, "bad image digest %.100q", digest)
	}
	return filepath.Join(s.blobDir(), sum+".ext4"), nil
}

// publish puts a finished filesystem into the store and points the name at it. In this order: the blob, what is known of
// it, the name. The file is on stable storage already.
func (s *Store) publish(ctx context.Context, name, file, digest string, b blobFile) error {
	to, err := s.blobPath(digest)
	if err != nil {
		return err
	}
	return s.publishing(ctx, func(work string) error {
		for _, dir := range []string{s.blobDir(), s.nameDir()} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		if err := os.Rename(file, to); err != nil {
			return fmt.Errorf("publish image: %w", err)
		}
		if err := writeJSON(work, metaPath(to), b); err != nil {
			return fmt.Errorf("publish image: %w", err)
		}
		if err := errors.Join(syncDir(s.blobDir()), writeJSON(work, s.namePath(name), nameFile{Digest: digest})); err != nil {
			return fmt.Errorf("publish image: %w", err)
		}
		return syncDir(s.nameDir())
	})
}

// collect removes blobs that nobody needs. The publish lock is held. If it can't be told what is needed nothing is removed.
func (s *Store) collect(ctx context.Context) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, name := range names {
		var n nameFile
		if err := readJSON(s.namePath(name), &n); err != nil {
			return fmt.Errorf("read image %s: %w", name, err)
		}
		needed[n.Digest] = true
	}
	entries, err := os.ReadDir(s.blobDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		sum := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".ext4"), ".json")
		digest := "sha256:" + sum
		if needed[digest] {
			continue
		}
		used, err := s.inUse(ctx, digest)
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("is image %s in use: %w", digest, err))...)
		}
		if !used {
			errs = append(errs, os.Remove(filepath.Join(s.blobDir(), e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) names() ([]string, error) {
	entries, err := os.ReadDir(s.nameDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			names = append(names, name)
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
