package gitsync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/progress"
)

// Source says what to ship of the repository around a path.
type Source struct {
	Path      string // absolute
	Full      bool   // the whole history and its tags, not the newest commit alone
	Untracked bool   // also files that git does not track; those that it ignores never
	Branch    string // a new branch to be on in the guest; empty: the one that the host is on
	From      string // with Branch: the commit where it begins, whose files go instead of those of the working tree
}

// File is a file or symbolic link that is to be shipped.
type File struct {
	Path string // below the top of the working tree, with slashes
	Size int64  // bytes
}

// Shipment is a repository on its way into a guest. It is read from the host when it is made and when it is packed; the
// host's repository, index and working tree are never written.
type Shipment struct {
	Repo     string // top of the host's working tree
	Head     string // id of the commit that it builds on; empty: there is none yet
	Branch   string // without refs/heads/; empty: the head is detached
	HostHead string // id of the commit that the host has checked out: Head, unless a branch begins elsewhere
	// After Pack: the tree that git would make of the working tree, and that of the very bytes.
	Tree, Files string
	Notices     []string // what stays behind, and the like

	stage string
	outer *part
}

// Plan finds out what there is to ship. Stage is an empty directory for work in progress, which the caller removes in the
// end, and with it all that the shipment needs. Errors: fault.Invalid for what is no working tree of a repository.
func Plan(ctx context.Context, src Source, stage string) (*Shipment, error) {
	s := &Shipment{stage: stage}
	p, err := openPart(ctx, src.Path, filepath.Join(stage, "outer"))
	if err != nil {
		return nil, err
	}
	s.HostHead = p.head
	if err := p.choose(ctx, src); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.stage, 0o700); err != nil {
		return nil, fmt.Errorf("make a stage: %w", err)
	}
	if err := p.begin(ctx, src.From != ""); err != nil {
		return nil, err
	}
	p.guestGit = ".git"
	if err := p.survey(ctx, src, s.notice); err != nil {
		return nil, err
	}
	if src.From != "" && p.dirty {
		s.notice("changes of the host's working tree stay behind: the files are those of %s", src.From)
	}
	s.outer, s.Repo, s.Head, s.Branch = p, p.top, p.head, p.branch
	return s, nil
}

// Check refuses what Plan would refuse at once, and does nothing else.
func Check(ctx context.Context, src Source) error {
	p, err := openPart(ctx, src.Path, "")
	if err != nil {
		return err
	}
	return p.choose(ctx, src)
}

func (s *Shipment) notice(format string, args ...any) {
	s.Notices = append(s.Notices, fmt.Sprintf(format, args...))
}

// Name is what the directory is to be called in the guest.
func (s *Shipment) Name() string {
	if name := filepath.Base(s.Repo); name != "/" {
		return name
	}
	return "repository"
}

// List returns the files of the working tree and of its submodules, sorted.
func (s *Shipment) List() []File {
	var files []File
	s.outer.each(func(p *part) {
		for _, f := range p.files {
			files = append(files, File{Path: join(p.at, f.path), Size: f.size})
		}
	})
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

// Pack makes the guest's repository, and returns the bare repository, in the stage, that has the objects of Tree and
// Files. It may be moved elsewhere; its alternates are the host's objects.
func (s *Shipment) Pack(ctx context.Context, report progress.Sink) (quarantine string, err error) {
	end := report.Stage("pack repository")
	defer func() { end(err) }()
	dir := filepath.Join(s.stage, "trees")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a directory for objects: %w", err)
	}
	q, err := newQuarantine(ctx, dir, s.outer.gitDir, 1<<62)
	if err != nil {
		return "", err
	}
	if s.Tree, s.Files, err = s.outer.trees(ctx, q); err != nil {
		return "", err
	}
	s.outer.each(func(p *part) {
		if err == nil {
			err = p.pack(ctx)
		}
	})
	return q.dir, err
}

// Head returns the commit that the repository around a path has checked out; empty: there is none yet.
func Head(ctx context.Context, path string) (string, error) {
	return optional(gitText(ctx, call{dir: path, args: []string{"rev-parse", "--verify", "--quiet", "HEAD^{commit}"}}))
}

// optional makes an empty answer of git's exit status 1, which says that there is no such thing.
func optional(text string, err error) (string, error) {
	if hostexec.ExitCode(err) == 1 {
		return "", nil
	}
	return text, err
}

// part is one repository: the outermost, or a submodule.
type part struct {
	stage    string // directory of its own
	top      string // of the host's working tree
	files    []file
	root     string // directory in which the files are: top, or a checkout of another commit
	gitDir   string
	common   string // directory of what linked working trees share
	head     string
	branch   string
	full     bool
	at       string // where it is in the guest's working tree; empty: at the top
	guestGit string // where its repository is in the guest, below the workspace
	entries  []indexEntry
	sizes    map[string]int64 // of the blobs of the index, in bytes
	inner    []*part          // submodules that are checked out
	dirty    bool             // there are changes that are not committed
}

// file is one that is shipped.
type file struct {
	path  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
	clean string // id of the blob that it is, byte for byte; empty: not known
	same  string // id of the blob that git takes it for; empty: it is changed or not tracked
}

// each calls fn for the part and all parts in it.
func (p *part) each(fn func(*part)) {
	fn(p)
	for _, in := range p.inner {
		in.each(fn)
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// openPart finds the repository around a directory. What git refuses, for reasons of ownership for one, is told in its words.
func openPart(ctx context.Context, path, stage string) (*part, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.New(fault.NotFound, "open the workspace: %w", err)
	}
	if !info.IsDir() {
		path = filepath.Dir(path)
	}
	p := &part{stage: stage}
	inside, err := say(ctx, path, "rev-parse", "--is-inside-work-tree")
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s is not usable as a git repository: %w", path, err).
			WithHint("a plain directory goes into a VM with --copy")
	}
	if inside != "true" {
		return nil, fault.New(fault.Invalid, "%s is in a git repository that has no working tree there", path).
			WithHint("clone it, and name the clone")
	}
	for _, q := range []struct {
		to   *string
		args []string
	}{
		{&p.top, []string{"rev-parse", "--show-toplevel"}},
		{&p.gitDir, []string{"rev-parse", "--absolute-git-dir"}},
		{&p.common, []string{"rev-parse", "--path-format=absolute", "--git-common-dir"}},
	} {
		if *q.to, err = say(ctx, path, q.args...); err != nil {
			return nil, fmt.Errorf("read the repository around %s: %w", path, err)
		}
	}
	p.root = p.top
	if p.head, err = Head(ctx, p.top); err != nil {
		return nil, fmt.Errorf("read HEAD of %s: %w", p.top, err)
	}
	ref, err := optional(gitText(ctx, p.call("symbolic-ref", "--quiet", "HEAD")))
	if err != nil {
		return nil, fmt.Errorf("read HEAD of %s: %w", p.top, err)
	}
	p.branch = strings.TrimPrefix(ref, "refs/heads/")
	return p, nil
}

// say asks git in a directory; an error has git's last words only.
func say(ctx context.Context, dir string, args ...string) (string, error) {
	cmd, err := call{dir: dir, args: args}.command()
	if err != nil {
		return "", err
	}
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := hostexec.Run(ctx, cmd); err != nil {
		if text := strings.TrimSpace(words.String()); text != "" && ctx.Err() == nil {
			return "", errors.New("git says: " + text)
		}
		return "", err
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

// call is a run of git on the part, with the copy of its index.
func (p *part) call(args ...string) call {
	return call{dir: p.root, args: args, env: []string{
		"GIT_DIR=" + p.gitDir, "GIT_WORK_TREE=" + p.root, "GIT_INDEX_FILE=" + p.index(),
	}}
}

func (p *part) index() string { return filepath.Join(p.stage, "index") }

// choose settles what commit and branch the guest gets.
func (p *part) choose(ctx context.Context, src Source) error {
	p.full = src.Full
	if src.From != "" && src.Branch == "" {
		return fault.New(fault.Invalid, "where to begin a branch is given, and no branch").WithHint("name it: --branch")
	}
	if src.Branch != "" {
		if _, err := say(ctx, p.top, "check-ref-format", "refs/heads/"+src.Branch); err != nil || strings.HasPrefix(src.Branch, "-") {
			return fault.New(fault.Invalid, "%q is no name for a branch", src.Branch)
		}
		p.branch = src.Branch
	}
	if src.From == "" {
		return nil
	}
	var err error
	if p.head, err = say(ctx, p.top, "rev-parse", "--verify", "--end-of-options", src.From+"^{commit}"); err != nil {
		return fault.New(fault.NotFound, "%s has no commit %q: %w", p.top, src.From, err)
	}
	return nil
}

// begin makes the copy of the index and, of another commit, the files.
func (p *part) begin(ctx context.Context, checkOut bool) error {
	if !checkOut {
		return p.copyIndex()
	}
	changed, err := gitText(ctx, call{dir: p.top, args: []string{"status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"}})
	if err != nil {
		return fmt.Errorf("look for changes in %s: %w", p.top, err)
	}
	p.dirty = changed != ""
	p.root = filepath.Join(p.stage, "files")
	if err := os.Mkdir(p.root, 0o700); err != nil {
		return fmt.Errorf("make a stage: %w", err)
	}
	for _, args := range [][]string{
		{"read-tree", "--no-sparse-checkout", "--reset", p.head},
		{"checkout-index", "--all", "--index", "--force", "--quiet"},
	} {
		if err := git(ctx, p.call(args...), nil); err != nil {
			return fmt.Errorf("check out %s: %w", p.head, err)
		}
	}
	return nil
}

// copyIndex copies the host's index. Its time goes along: git compares it with those of files to know which of them may have
// been changed after it was written.
func (p *part) copyIndex() error {
	from := filepath.Join(p.gitDir, "index")
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing has ever been added
	}
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	if err := os.WriteFile(p.index(), content, 0o600); err != nil {
		return fmt.Errorf("copy the index: %w", err)
	}
	return os.Chtimes(p.index(), info.ModTime(), info.ModTime())
}
