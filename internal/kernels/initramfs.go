package kernels

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"banger/internal/depot"
	"banger/internal/initramfs"
	"banger/internal/progress"
	"banger/internal/rootfs"
)

// unusedFor is after how long an initramfs that nobody asked for is removed.
const unusedFor = 30 * 24 * time.Hour

// Initramfs returns the path of an initramfs that boots the kernel with the agent, a static executable on the host. It is
// made once per content of the agent; after that the call costs two stats. The file may be deleted once a guest has
// booted from it.
func (s *Store) Initramfs(ctx context.Context, k Kernel, agentPath string) (string, error) {
	agent, err := s.agents.digest(ctx, agentPath)
	if err != nil {
		return "", fmt.Errorf("read guest agent: %w", err)
	}
	key := initramfs.Key(k.Digest, agent, bootModules())
	path := filepath.Join(s.cache, key+".cpio")
	if fresh(path) {
		return path, nil
	}
	err = s.archives.Do(ctx, nil, depot.Job{
		Key:  key,
		Have: func() (bool, error) { return fresh(path), nil },
		Make: func(ctx context.Context, work string, _ progress.Sink) error {
			tmp := filepath.Join(work, "initramfs.cpio")
			wanted, err := wantedModules(k.bootModules())
			if err != nil {
				return err
			}
			spec := initramfs.Spec{AgentPath: agentPath, ModulesDir: k.bootModules(), Modules: wanted}
			if err := writeArchive(ctx, tmp, spec); err != nil {
				return err
			}
			if now, err := rootfs.HashFile(ctx, agentPath); err != nil || now != agent {
				return errors.Join(errors.New("the guest agent changed meanwhile"), err)
			}
			return os.Rename(tmp, path)
		},
	})
	if err != nil {
		return "", fmt.Errorf("make initramfs for kernel %s: %w", k.Name, err)
	}
	return path, nil
}

// fresh reports whether an archive is there, and notes its use about once a day.
func fresh(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() == 0 {
		return false
	}
	if now := time.Now(); now.Sub(info.ModTime()) > 24*time.Hour {
		_ = os.Chtimes(path, now, now)
	}
	return true
}

func writeArchive(ctx context.Context, path string, spec initramfs.Spec) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := initramfs.Build(ctx, w, spec); err != nil {
		return err
	}
	// On stable storage before it gets its name: after a power cut a name must not lead to half a file.
	return errors.Join(w.Flush(), f.Sync())
}

func (s *Store) expireArchives() error {
	files, err := filepath.Glob(filepath.Join(s.cache, "*.cpio"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		info, err := os.Stat(file)
		if err == nil && time.Since(info.ModTime()) > unusedFor {
			err = os.Remove(file)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// memo remembers the digests of files until they change.
type memo struct {
	mu    sync.Mutex
	known map[string]remembered
}

type remembered struct {
	is     identity
	digest string
}

// identity changes whenever a file's content does, in practice.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func (m *memo) digest(ctx context.Context, path string) (string, error) {
	is, err := identify(path)
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	r, ok := m.known[path]
	m.mu.Unlock()
	if ok && r.is == is {
		return r.digest, nil
	}
	digest, err := rootfs.HashFile(ctx, path)
	if err != nil {
		return "", err
	}
	if again, err := identify(path); err != nil || again != is {
		return "", errors.Join(errors.New("the file changed while it was read"), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known = map[string]remembered{}
	}
	m.known[path] = remembered{is: is, digest: digest}
	return digest, nil
}

func identify(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}, errors.ErrUnsupported
	}
	return identity{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}
