package gitsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"banger/internal/fault"
)

// Applied says what Apply did, or would do. Paths are relative to the working tree.
type Applied struct {
	Changed   []string
	Conflicts []string // among them: those with conflict markers, and those left for a person to decide
}

// Apply merges the changes into the working tree of the host's repository, three-way, over what was shipped: conflicts are
// in the files as git writes them. The index, HEAD and refs stay as they are. Nothing is written if a file that git does
// not know would be overwritten, or with dry. Errors: fault.Precondition for what is in the way.
func (c *Changes) Apply(ctx context.Context, vm string, dry bool) (Applied, error) {
	top, err := gitText(ctx, c.onHost("rev-parse", "--show-toplevel"))
	if err != nil {
		return Applied{}, fmt.Errorf("find the working tree of %s: %w", c.base.Host, err)
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return Applied{}, fmt.Errorf("open the working tree: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	w := &workTree{c: c, root: root}
	ours, err := w.snapshot(ctx)
	if err != nil {
		return Applied{}, err
	}
	merged, conflicts, err := c.merge(ctx, ours, vm)
	if err != nil {
		return Applied{}, err
	}
	changes, err := c.differences(ctx, ours, merged)
	if err != nil {
		return Applied{}, err
	}
	done := Applied{Conflicts: conflicts}
	for _, ch := range changes {
		done.Changed = append(done.Changed, ch.path)
	}
	if err := w.check(ctx, changes); err != nil || dry {
		return done, err
	}
	return done, w.write(ctx, changes)
}

// change is one path that differs between two trees. An empty mode: it is not there.
type change struct {
	path     string
	old, new treeEntry
}

// differences lists what differs between two trees, by path.
func (c *Changes) differences(ctx context.Context, from, to string) ([]change, error) {
	before, err := readTree(ctx, c.q.dir, from)
	if err != nil {
		return nil, err
	}
	after, err := readTree(ctx, c.q.dir, to)
	if err != nil {
		return nil, err
	}
	var changes []change
	for p, e := range before {
		if now := after[p]; now != e {
			changes = append(changes, change{path: p, old: e, new: now})
		}
	}
	for p, e := range after {
		if _, ok := before[p]; !ok {
			changes = append(changes, change{path: p, new: e})
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return strings.Compare(a.path, b.path) })
	return changes, nil
}

// workTree is the host's working tree while changes are merged into it. All paths go through a root that they can't leave.
type workTree struct {
	c    *Changes
	root *os.Root
}

// snapshot makes a tree of what was shipped, with the files that the guest changed as they are on the host now.
func (w *workTree) snapshot(ctx context.Context) (string, error) {
	entries, err := readTree(ctx, w.c.q.dir, w.c.base.Files)
	if err != nil {
		return "", err
	}
	changes, err := w.c.differences(ctx, w.c.base.Files, w.c.raw)
	if err != nil {
		return "", err
	}
	for _, ch := range changes {
		e, err := w.entry(ch.path)
		if err != nil {
			return "", err
		}
		if delete(entries, ch.path); e.id != "" {
			entries[ch.path] = e
		}
	}
	return w.c.q.writeTree(ctx, entries)
}

// entry makes an object of a file of the host; of a directory, and of nothing, it makes none. Nothing lies behind a symbolic
// link: git does not look there either.
func (w *workTree) entry(name string) (e treeEntry, err error) {
	if w.behindLink(name) {
		return e, nil
	}
	info, err := w.root.Lstat(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || !w.parentsAreDirs(name) {
			return e, nil
		}
		return e, fmt.Errorf("read the working tree: %w", err)
	}
	switch {
	case info.Mode().IsRegular():
		f, err := w.root.Open(name)
		if err != nil {
			return e, fmt.Errorf("read the working tree: %w", err)
		}
		defer f.Close() //nolint:errcheck // only read
		if e.mode = modeFile; info.Mode()&0o100 != 0 {
			e.mode = modeExecutable
		}
		e.id, err = w.c.q.add("blob", info.Size(), f)
		return e, err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := w.root.Readlink(name)
		if err != nil {
			return e, fmt.Errorf("read the working tree: %w", err)
		}
		e.mode = modeSymlink
		e.id, err = w.c.q.add("blob", int64(len(target)), strings.NewReader(target))
		return e, err
	}
	return e, nil
}

// behindLink reports whether one of the directories above a path is a symbolic link.
func (w *workTree) behindLink(name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := w.root.Lstat(dir); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return true
		}
	}
	return false
}

func (w *workTree) parentsAreDirs(name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := w.root.Lstat(dir); err == nil && !info.IsDir() {
			return false
		}
	}
	return true
}

// check refuses changes that would destroy what git does not know, or what is not as it was when the merge was made.
func (w *workTree) check(ctx context.Context, changes []change) error {
	tracked, err := w.tracked(ctx)
	if err != nil {
		return err
	}
	shipped, err := readTree(ctx, w.c.q.dir, w.c.base.Files)
	if err != nil {
		return err
	}
	gone := map[string]bool{}
	for _, ch := range changes {
		gone[ch.path] = ch.new.mode == ""
	}
	var blocked []string
	for _, ch := range changes {
		now, err := w.entry(ch.path)
		if err != nil {
			return err
		}
		_, known := shipped[ch.path]
		switch {
		case now != ch.old, now.id != "" && !known && !tracked[ch.path], ch.new.mode == modeSubmodule, checkPath(ch.path) != nil:
			blocked = append(blocked, ch.path)
		case ch.new.mode != "" && !w.free(ch.path, gone):
			blocked = append(blocked, ch.path)
		}
	}
	if len(blocked) > 0 {
		return fault.New(fault.Precondition, "these paths of the working tree are in the way: %s", listed(blocked)).
			WithHint("move them aside, or export the changes as a branch: banger vm workspace export VM --branch NAME")
	}
	return nil
}

// tracked returns the paths that are in the host's index.
func (w *workTree) tracked(ctx context.Context) (map[string]bool, error) {
	names, err := gitFields(ctx, call{dir: w.root.Name(), args: []string{"ls-files", "-z", "--full-name"}})
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	tracked := make(map[string]bool, len(names))
	for _, n := range names {
		tracked[n] = true
	}
	return tracked, nil
}

// free reports whether a file can be made: its parents are directories, or will be, and no directory has its name, or
// nothing is left in it.
func (w *workTree) free(name string, gone map[string]bool) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := w.root.Lstat(dir); err == nil && !info.IsDir() && !gone[dir] {
			return false
		}
	}
	if w.behindLink(name) {
		return true // the link goes, or the loop above had said no
	}
	if info, err := w.root.Lstat(name); err != nil || !info.IsDir() {
		return true
	}
	empty := true
	err := fs.WalkDir(w.root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !gone[p] {
			empty = false
		}
		return err
	})
	return empty && err == nil
}

// write makes the changes: first what goes, then what comes.
func (w *workTree) write(ctx context.Context, changes []change) error {
	for _, ch := range changes {
		if ch.new.mode != "" {
			continue
		}
		if err := w.root.Remove(ch.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("apply: %w", err)
		}
		for dir := path.Dir(ch.path); dir != "."; dir = path.Dir(dir) {
			if w.root.Remove(dir) != nil { // not empty
				break
			}
		}
	}
	for _, ch := range changes {
		if ch.new.mode == "" {
			continue
		}
		if err := w.place(ctx, ch); err != nil {
			return fmt.Errorf("apply %s: %w", quotePath(ch.path), err)
		}
	}
	return nil
}

// place puts one file where it belongs, by a rename.
func (w *workTree) place(ctx context.Context, ch change) error {
	top, err := w.root.Stat(".")
	if err != nil {
		return err
	}
	perm := top.Mode().Perm()
	if err := w.makeDirs(path.Dir(ch.path), perm); err != nil {
		return err
	}
	tmp := path.Join(path.Dir(ch.path), ".banger-apply-"+ch.new.id[:16])
	_ = w.root.Remove(tmp) // of a run that was killed
	if ch.new.mode == modeSymlink {
		target, err := w.c.q.blob(ctx, ch.new.id)
		if err != nil {
			return err
		}
		if err := w.root.Symlink(string(target), tmp); err != nil {
			return err
		}
	} else if err := w.fill(ctx, tmp, ch, perm); err != nil {
		_ = w.root.Remove(tmp)
		return err
	}
	if info, err := w.root.Lstat(ch.path); err == nil && info.IsDir() {
		if err := w.root.Remove(ch.path); err != nil { // an empty one; nothing is ever removed with its content
			return err
		}
	}
	return w.root.Rename(tmp, ch.path)
}

// fill writes a blob to a new file, with the mode that the old one had, or one like the working tree's.
func (w *workTree) fill(ctx context.Context, tmp string, ch change, perm fs.FileMode) (err error) {
	perm = perm&0o666 | 0o600
	if info, err := w.root.Lstat(ch.path); err == nil && info.Mode().IsRegular() {
		perm = info.Mode().Perm() &^ 0o111
	}
	if ch.new.mode == modeExecutable {
		perm |= perm & 0o444 >> 2
	}
	f, err := w.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = closeAfter(f, err) }()
	if err := git(ctx, w.c.q.call("cat-file", "blob", ch.new.id), io.Writer(f)); err != nil {
		return err
	}
	return f.Chmod(perm)
}

// makeDirs makes directories with the mode of the working tree's own, whatever this process's umask is.
func (w *workTree) makeDirs(dir string, perm fs.FileMode) error {
	if dir == "." {
		return nil
	}
	if info, err := w.root.Lstat(dir); err == nil && info.IsDir() {
		return nil
	}
	if err := w.makeDirs(path.Dir(dir), perm); err != nil {
		return err
	}
	if err := w.root.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return w.root.Chmod(dir, perm)
}
