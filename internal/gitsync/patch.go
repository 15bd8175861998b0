package gitsync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// Diff writes the changes as a patch that git apply takes, with the content of binary files; with stat only a summary.
func (c *Changes) Diff(ctx context.Context, w io.Writer, stat bool) error {
	args := []string{"diff-tree", "-r", "-M", "--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/"}
	if stat {
		args = append(args, "--stat", "--summary")
	} else {
		args = append(args, "-p", "--binary", "--full-index")
	}
	if err := git(ctx, c.q.call(append(args, c.base.Tree, c.tree)...), w); err != nil {
		return fmt.Errorf("write the patch: %w", err)
	}
	return nil
}

// Branch is what Export made.
type Branch struct {
	Ref     string // refs/heads/...
	Commit  string
	Commits int // that the branch has more than what was shipped
}

// Export makes a branch in the host's repository: the commits made in the guest as they are, on the commit that was
// shipped, then one commit with what was not committed there. If nothing was committed in the guest, what had not been
// committed on the host comes before that, as a commit of its own. Only checked objects and the one ref are written; index,
// HEAD and working tree stay as they are. Errors: fault.Exists if there is such a branch and force is not set,
// fault.Precondition if it is checked out, or if nothing has changed.
func (c *Changes) Export(ctx context.Context, name, vm string, force bool) (Branch, error) {
	b := Branch{Ref: "refs/heads/" + name}
	old, err := c.branchValue(ctx, name, force)
	if err != nil {
		return b, err
	}
	if b.Commit, err = c.commits(ctx, vm); err != nil {
		return b, err
	}
	if b.Commit == c.base.Head {
		return b, fault.New(fault.Precondition, "nothing has changed in VM %s since its workspace was prepared", vm)
	}
	if c.base.Head != "" {
		if err := git(ctx, c.onHost("cat-file", "-e", c.base.Head+"^{commit}"), nil); err != nil {
			return b, fault.New(fault.Precondition, "the repository %s has lost the commit that was shipped, %s", c.base.Host, c.base.Head).
				WithHint("take a patch: banger vm workspace export %s -o changes.patch", vm)
		}
	}
	count, err := gitText(ctx, c.q.call(slices.Concat([]string{"rev-list", "--count", b.Commit}, c.notBase())...))
	if err != nil {
		return b, err
	}
	if _, err := fmt.Sscan(count, &b.Commits); err != nil {
		return b, fmt.Errorf("count commits: %w", err)
	}
	pack := filepath.Join(c.dir, "export.pack")
	if err := c.writePack(ctx, b.Commit, pack); err != nil {
		return b, fmt.Errorf("pack the branch: %w", err)
	}
	if err := c.checkPack(ctx, pack); err != nil {
		return b, fault.New(fault.Corrupt, "what came from the guest does not pass git's checks: %w", err)
	}
	return b, c.publish(ctx, pack, b, old)
}

func (c *Changes) notBase() []string {
	if c.base.Head == "" {
		return nil
	}
	return []string{"^" + c.base.Head}
}

// onHost is a call of git in the host's repository.
func (c *Changes) onHost(args ...string) call { return call{dir: c.base.Host, args: args} }

// branchValue returns what a branch is now: nothing, or with force a commit.
func (c *Changes) branchValue(ctx context.Context, name string, force bool) (old string, err error) {
	ref := "refs/heads/" + name
	if name == "HEAD" || strings.HasPrefix(name, "-") || git(ctx, c.onHost("check-ref-format", ref), nil) != nil {
		return "", fault.New(fault.Invalid, "%q can't be the name of a branch", name)
	}
	trees, err := gitText(ctx, c.onHost("worktree", "list", "--porcelain"))
	if err != nil {
		return "", fmt.Errorf("read the repository %s: %w", c.base.Host, err)
	}
	if slices.Contains(strings.Split(trees, "\n"), "branch "+ref) {
		return "", fault.New(fault.Precondition, "the branch %s is checked out on the host", name).
			WithHint("give another name, or merge into the working tree: banger vm workspace apply")
	}
	old, err = gitText(ctx, c.onHost("show-ref", "--verify", "--hash", ref))
	switch {
	case err != nil:
		return strings.Repeat("0", 2*c.q.hash().Size()), nil
	case !force:
		return "", fault.New(fault.Exists, "the repository %s has a branch %s already", c.base.Host, name).
			WithHint("give another name, or --force to move it")
	}
	return old, nil
}

// commits makes the commits of a branch in the quarantine and returns the last one.
func (c *Changes) commits(ctx context.Context, vm string) (string, error) {
	tip := c.commit
	if tip == "" {
		tip = c.base.Head
		var err error
		if tip, err = c.commitOn(ctx, tip, c.base.Tree, "local modifications as shipped to VM "+vm); err != nil {
			return "", err
		}
	}
	return c.commitOn(ctx, tip, c.tree, "changes in VM "+vm+" not committed")
}

// commitOn makes a commit of a tree, unless its parent has the same.
func (c *Changes) commitOn(ctx context.Context, parent, tree, message string) (string, error) {
	args := []string{"commit-tree", "-m", message}
	if parent != "" {
		have, err := gitText(ctx, c.q.call("rev-parse", "--verify", parent+"^{tree}"))
		if err != nil {
			return "", fmt.Errorf("read commit %s: %w", parent, err)
		}
		if have == tree {
			return parent, nil
		}
		args = append(args, "-p", parent)
	}
	k := c.q.call(append(args, tree)...)
	k.env = c.identity(ctx)
	id, err := gitText(ctx, k)
	if err != nil {
		return "", fmt.Errorf("make a commit: %w", err)
	}
	return id, nil
}

// identity is the author that the host's user has in this repository.
func (c *Changes) identity(ctx context.Context) []string {
	name, email := "banger", "banger@localhost"
	if c.base.Host != "" {
		if n, err := gitText(ctx, c.onHost("config", "--get", "user.name")); err == nil && n != "" {
			name = n
		}
		if m, err := gitText(ctx, c.onHost("config", "--get", "user.email")); err == nil && m != "" {
			email = m
		}
	}
	date := fmt.Sprintf("@%d +0000", time.Now().Unix())
	return []string{
		"GIT_AUTHOR_NAME=" + name, "GIT_AUTHOR_EMAIL=" + email, "GIT_AUTHOR_DATE=" + date,
		"GIT_COMMITTER_NAME=" + name, "GIT_COMMITTER_EMAIL=" + email, "GIT_COMMITTER_DATE=" + date,
	}
}

// publish brings a checked pack into the host's repository and points the branch at it.
func (c *Changes) publish(ctx context.Context, pack string, b Branch, old string) error {
	f, err := os.Open(pack)
	if err != nil {
		return fmt.Errorf("export the branch: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	config := c.sharing(ctx)
	in := c.onHost("index-pack", "--stdin", "--strict", "--fix-thin", "--threads=1")
	in.stdin, in.config = f, config
	if err := git(ctx, in, nil); err != nil {
		return fmt.Errorf("store objects in %s: %w", c.base.Host, err)
	}
	update := c.onHost("update-ref", "-m", "banger: changes in a VM", b.Ref, b.Commit, old)
	update.config, update.env = config, c.identity(ctx)
	if err := git(ctx, update, nil); err != nil {
		return fmt.Errorf("set the branch: %w", err)
	}
	return nil
}

// sharing makes git create files that whoever may read the repository may read, whatever this process's umask is.
func (c *Changes) sharing(ctx context.Context) []string {
	if set, err := gitText(ctx, c.onHost("config", "--get", "core.sharedRepository")); err == nil && set != "" {
		return nil
	}
	objects, err := gitText(ctx, c.onHost("rev-parse", "--path-format=absolute", "--git-path", "objects"))
	if err != nil {
		return nil
	}
	info, err := os.Stat(objects)
	if err != nil {
		return nil
	}
	return []string{fmt.Sprintf("core.sharedRepository=0%o", info.Mode().Perm()&0o666|0o600)}
}

// errGitTooOld is what Apply fails with if git has no merge-tree --write-tree (before 2.38).
var errGitTooOld = fault.New(fault.Unsupported, "applying changes needs git 2.38 or newer on the host").
	WithHint("take a patch instead: banger vm workspace export VM -o changes.patch && git apply --3way changes.patch")

// merge merges two trees over a third and returns the tree that comes of it, and the paths in conflict.
func (c *Changes) merge(ctx context.Context, ours, vm string) (tree string, conflicts []string, err error) {
	labels := []string{"working-tree", "vm/" + vm}
	base, err := c.commitOn(ctx, "", c.base.Files, "base")
	if err != nil {
		return "", nil, err
	}
	for i, side := range []string{ours, c.raw} {
		k := c.q.call("commit-tree", "-m", labels[i], "-p", base, side)
		k.env = c.identity(ctx)
		commit, err := gitText(ctx, k)
		if err == nil {
			err = git(ctx, c.q.call("update-ref", "refs/heads/"+labels[i], commit), nil)
		}
		if err != nil {
			return "", nil, fmt.Errorf("prepare the merge: %w", err)
		}
	}
	k := c.q.call("merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", labels[0], labels[1])
	fields, err := gitFieldsOf(ctx, k, 1)
	if hostexec.ExitCode(err) == 129 {
		return "", nil, errGitTooOld
	}
	if err != nil || len(fields) == 0 {
		return "", nil, errors.Join(errors.New("merge"), err)
	}
	for _, p := range fields[1:] {
		if p != "" && !slices.Contains(conflicts, p) {
			conflicts = append(conflicts, p)
		}
	}
	return fields[0], conflicts, nil
}

// gitFieldsOf is gitFields for a command that also succeeds with another status.
func gitFieldsOf(ctx context.Context, c call, also int) ([]string, error) {
	text, err := gitText(ctx, c)
	if err != nil && hostexec.ExitCode(err) != also {
		return nil, err
	}
	return strings.Split(strings.TrimRight(text, "\x00"), "\x00"), nil
}
