package gitsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/fault"
)

// Base is what a guest was given, as the host remembers it.
type Base struct {
	Repo  string // bare repository in which Head and Tree can be read
	Head  string // the commit that was checked out; empty: there was none
	Tree  string // tree of the working tree as it was shipped
	Files string // tree of the very bytes that were shipped, if filters or a sparse checkout made it differ; empty: Tree
	Host  string // repository of the host, whose rules for ignored files count; empty: none
}

// Limits bound what is taken from a guest. Zero values are replaced by those of [DefaultLimits].
type Limits struct {
	Archive int64 // bytes of the archive
	Entries int   // files in it, the objects in the guest's repository included
	Object  int64 // bytes of one file or git object
	Total   int64 // bytes of all objects of the guest's repository, unpacked
}

// DefaultLimits are enough for a working tree with a large repository.
func DefaultLimits() Limits {
	return Limits{Archive: 32 << 30, Entries: 2_000_000, Object: 1 << 30, Total: 64 << 30}
}

// Changes is what became of a workspace in a guest. Its objects are in a quarantine, which Close removes.
type Changes struct {
	base    Base
	q       *quarantine
	dir     string
	limits  Limits
	raw     string // tree of the files as they are in the guest
	tree    string // base.Tree with the changes of raw
	commit  string // the guest's commit, if it builds on base.Head and differs from it
	notices []string
}

// Collect reads the archive of a guest's workspace directory: entries below one directory, with the guest's repository in
// its .git. It returns what differs from the base. Scratch is a directory in which the quarantine is made. Files that are
// ignored, submodules, repositories within the workspace and names that git forbids are left out, with a notice; if the
// guest's repository is missing or damaged, its commits are. Errors: fault.Exhausted beyond a limit, fault.Corrupt for an
// archive that is none.
func Collect(ctx context.Context, scratch string, base Base, archive io.Reader, limits Limits) (_ *Changes, err error) {
	if base.Files == "" {
		base.Files = base.Tree
	}
	def := DefaultLimits()
	if limits.Archive == 0 {
		limits.Archive = def.Archive
	}
	if limits.Entries == 0 {
		limits.Entries = def.Entries
	}
	if limits.Object == 0 {
		limits.Object = def.Object
	}
	if limits.Total == 0 {
		limits.Total = def.Total
	}
	dir, err := os.MkdirTemp(scratch, "changes-")
	if err != nil {
		return nil, fmt.Errorf("make a quarantine: %w", err)
	}
	c := &Changes{base: base, dir: dir, limits: limits}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.q, err = newQuarantine(ctx, dir, base.Repo, limits.Object); err != nil {
		return nil, err
	}
	if err := c.copyShallow(ctx); err != nil {
		return nil, err
	}
	shipped, err := readTree(ctx, c.q.dir, base.Files)
	if err != nil {
		return nil, err
	}
	for _, e := range shipped {
		c.q.known[e.id] = true
	}
	in := newIncoming(c, shipped)
	if err := in.read(ctx, archive); err != nil {
		return nil, err
	}
	tracked, err := in.history.take(ctx)
	if err != nil {
		return nil, err
	}
	if err := in.dropIgnored(ctx, tracked); err != nil {
		return nil, err
	}
	if err := c.conclude(ctx, shipped, in.result()); err != nil {
		return nil, err
	}
	c.notices = append(in.notices, c.notices...)
	return c, nil
}

// copyShallow tells the quarantine where the history of the host's repository ends, if that is a shallow clone.
func (c *Changes) copyShallow(ctx context.Context) error {
	if c.base.Host == "" {
		return nil
	}
	name, err := gitText(ctx, c.onHost("rev-parse", "--path-format=absolute", "--git-path", "shallow"))
	if err != nil {
		return nil //nolint:nilerr // the repository is gone: patches can still be made
	}
	content, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the repository %s: %w", c.base.Host, err)
	}
	if err := os.WriteFile(filepath.Join(c.q.dir, "shallow"), content, 0o600); err != nil {
		return fmt.Errorf("make a quarantine: %w", err)
	}
	return nil
}

// conclude makes the trees of what was read.
func (c *Changes) conclude(ctx context.Context, shipped, files map[string]treeEntry) (err error) {
	if c.raw, err = c.q.writeTree(ctx, files); err != nil {
		return err
	}
	if c.tree = c.raw; c.base.Files == c.base.Tree {
		return nil
	}
	tree, err := readTree(ctx, c.q.dir, c.base.Tree)
	if err != nil {
		return err
	}
	for p, e := range shipped {
		if now, ok := files[p]; !ok {
			delete(tree, p)
		} else if now != e {
			tree[p] = now
		}
	}
	for p, e := range files {
		if _, ok := shipped[p]; !ok {
			tree[p] = e
		}
	}
	c.tree, err = c.q.writeTree(ctx, tree)
	return err
}

// Close removes the quarantine.
func (c *Changes) Close() error { return os.RemoveAll(c.dir) }

// Notices says what was left out, and why.
func (c *Changes) Notices() []string { return slices.Clone(c.notices) }

// Changed reports whether the files differ from those shipped.
func (c *Changes) Changed() bool { return c.tree != c.base.Tree }

// Commit returns the guest's last commit, if commits were made in the guest that build on what was shipped; else nothing.
func (c *Changes) Commit() string { return c.commit }

// note remembers something that was left out.
func (c *Changes) note(format string, args ...any) {
	c.notices = append(c.notices, fmt.Sprintf(format, args...))
}

// listed names the first of many paths.
func listed(paths []string) string {
	const most = 5
	slices.Sort(paths)
	var quoted []string
	for _, p := range paths[:min(len(paths), most)] {
		quoted = append(quoted, quotePath(p))
	}
	text := strings.Join(quoted, ", ")
	if len(paths) > most {
		text += fmt.Sprintf(" and %d more", len(paths)-most)
	}
	return text
}

// boundedReader fails when more than left bytes are read.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fault.New(fault.Exhausted, "the workspace is larger than the limit").
			WithHint("delete what is not needed in the guest")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
