package gitsync

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/fault"
	"banger/internal/progress"
)

// Write writes the packed repository and its working tree as a tar stream: entries below a directory that is called as [Name]
// says, owned by root. It reports the bytes of files written.
func (s *Shipment) Write(ctx context.Context, w io.Writer, report progress.Sink) error {
	t := &treeWriter{ctx: ctx, tar: tar.NewWriter(w), prefix: s.Name(), made: map[string]bool{}, buf: make([]byte, 256<<10), report: report}
	var err error
	s.outer.each(func(p *part) {
		for _, f := range p.files {
			t.total += f.size
		}
	})
	s.outer.each(func(p *part) {
		if err == nil {
			err = t.part(p)
		}
	})
	if err == nil {
		err = t.tar.Close()
	}
	if len(t.changed) > 0 {
		s.notice("changed on the host while they were read: %s", listed(t.changed))
	}
	return err
}

// treeWriter writes files with the directories that they are in.
type treeWriter struct {
	ctx     context.Context //nolint:containedctx // of one Write
	tar     *tar.Writer
	prefix  string
	made    map[string]bool
	buf     []byte
	changed []string // files that are not as they were planned
	done    int64
	total   int64
	told    time.Time
	report  progress.Sink
}

func (t *treeWriter) part(p *part) error {
	if err := t.directory(p.at, 0o755); err != nil {
		return err
	}
	if p.at != "" {
		link := "gitdir: " + strings.Repeat("../", strings.Count(p.at, "/")+1) + p.guestGit + "\n"
		if err := t.content(join(p.at, ".git"), []byte(link), time.Now()); err != nil {
			return err
		}
	}
	if err := t.repository(p); err != nil {
		return err
	}
	for _, e := range p.entries {
		if e.mode == modeSubmodule { // also one that is not checked out has a directory
			if err := t.directory(join(p.at, e.path), 0o755); err != nil {
				return err
			}
		}
	}
	for _, f := range p.files {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		if err := t.parents(p, f.path); err != nil {
			return err
		}
		if err := t.file(p, f); err != nil {
			return fmt.Errorf("send %s: %w", quotePath(join(p.at, f.path)), err)
		}
		t.tell(f)
	}
	return nil
}

// repository writes the guest's repository.
func (t *treeWriter) repository(p *part) error {
	files, err := p.repository(t.ctx)
	if err != nil {
		return err
	}
	for _, dir := range []string{"", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"} {
		if err := t.directory(join(p.guestGit, dir), 0o755); err != nil {
			return err
		}
	}
	for _, f := range files {
		name := p.guestGit + "/" + f.name
		if f.source == "" {
			err = t.content(name, f.content, time.Now())
		} else {
			err = t.copy(name, f.source)
		}
		if err != nil {
			return fmt.Errorf("send the repository: %w", err)
		}
	}
	return t.index(p)
}

func (t *treeWriter) index(p *part) error {
	info, err := os.Stat(p.index())
	if err != nil {
		return fmt.Errorf("read the copy of the index: %w", err)
	}
	content, err := os.ReadFile(p.index())
	if err != nil {
		return fmt.Errorf("read the copy of the index: %w", err)
	}
	h, err := p.hashOf(t.ctx)
	if err != nil {
		return err
	}
	if content, err = withoutExtensions(content, h()); err != nil {
		return err
	}
	return t.content(p.guestGit+"/index", content, info.ModTime())
}

func (t *treeWriter) header(h *tar.Header) error {
	h.Format, h.Name = tar.FormatPAX, t.prefix+"/"+h.Name
	return t.tar.WriteHeader(h)
}

func (t *treeWriter) directory(name string, perm fs.FileMode) error {
	name = strings.TrimSuffix(name, "/")
	if t.made[name] {
		return nil
	}
	if name != "" {
		if err := t.directory(strings.TrimSuffix(path.Dir("/" + name)[1:], "/"), 0o755); err != nil {
			return err
		}
	}
	t.made[name] = true
	h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(perm), ModTime: time.Now()}
	if name == "" {
		h.Name = ""
	}
	return t.header(h)
}

// parents writes the directories in which a file is, with the modes that they have on the host.
func (t *treeWriter) parents(p *part, name string) error {
	for i, c := range name {
		if c != '/' || t.made[join(p.at, name[:i])] {
			continue
		}
		perm := fs.FileMode(0o755)
		if info, err := os.Lstat(filepath.Join(p.root, name[:i])); err == nil {
			perm = info.Mode().Perm()
		}
		if err := t.directory(join(p.at, name[:i]), perm); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeWriter) content(name string, content []byte, at time.Time) error {
	if err := t.directory(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := t.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: at}); err != nil {
		return err
	}
	_, err := t.tar.Write(content)
	return err
}

func (t *treeWriter) copy(name, source string) error {
	in, err := openFile(source)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := t.directory(path.Dir(name), 0o755); err != nil {
		return err
	}
	return t.stream(&tar.Header{Name: name, Mode: 0o644, Size: info.Size(), ModTime: info.ModTime()}, in)
}

// stream writes a file of the size that the header says. One that has become shorter is filled up.
func (t *treeWriter) stream(h *tar.Header, in io.Reader) error {
	h.Typeflag = tar.TypeReg
	if err := t.header(h); err != nil {
		return err
	}
	in = &untilDone{t.ctx, in}
	n, err := io.CopyBuffer(writerOnly{t.tar}, io.LimitReader(in, h.Size), t.buf)
	if err == nil && n < h.Size {
		_, err = io.CopyN(t.tar, zeros{}, h.Size-n)
	}
	return err
}

func (t *treeWriter) file(p *part, f file) error {
	source, name := filepath.Join(p.root, f.path), join(p.at, f.path)
	if f.mode&fs.ModeSymlink != 0 {
		target, err := os.Readlink(source)
		if err != nil {
			return t.vanished(name, err)
		}
		return t.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: f.mtime})
	}
	in, err := openFile(source)
	if err != nil {
		return t.vanished(name, err)
	}
	defer in.Close() //nolint:errcheck // only read
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if info.Size() != f.size || !info.ModTime().Equal(f.mtime) {
		t.changed = append(t.changed, name)
	}
	return t.stream(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}, in)
}

// vanished lets a file pass that has gone, or has become something else, since it was planned.
func (t *treeWriter) vanished(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ELOOP) {
		t.changed = append(t.changed, name)
		return nil
	}
	return err
}

// tellEvery bounds how often progress is told.
const tellEvery = 100 * time.Millisecond

func (t *treeWriter) tell(f file) {
	t.done += f.size
	if now := time.Now(); now.Sub(t.told) >= tellEvery {
		t.told = now
		t.report.Send(progress.Update{Stage: SendStage, Current: t.done, Total: t.total, Unit: "bytes"})
	}
}

// SendStage is the stage that Write reports of.
const SendStage = "send files"

// openFile opens a regular file, and not what somebody has put in its place, which may block or lead elsewhere.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, fault.New(fault.Invalid, "%s is not a regular file", quotePath(path))
	}
	return f, nil
}

// untilDone is a reader that ends with a context.
type untilDone struct {
	ctx context.Context //nolint:containedctx // of one copy
	r   io.Reader
}

func (u *untilDone) Read(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(b)
}

// writerOnly hides the methods that make io.Copy bypass its buffer.
type writerOnly struct{ io.Writer }

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
