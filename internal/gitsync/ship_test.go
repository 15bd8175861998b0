package gitsync_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/filetar"
	"banger/internal/gitsync"
)

// ship plans, packs and writes a repository, and unpacks it in a directory as a guest would. The host's repository must not
// have changed by that.
func ship(t *testing.T, src gitsync.Source) (s *gitsync.Shipment, guest, quarantine string) {
	t.Helper()
	top := git(t, src.Path, "rev-parse", "--show-toplevel")
	before := digest(t, top)
	s, err := gitsync.Plan(t.Context(), src, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if quarantine, err = s.Pack(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := s.Write(t.Context(), &archive, nil); err != nil {
		t.Fatal(err)
	}
	if digest(t, top) != before {
		t.Error("shipping has changed the host's repository")
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	if err := filetar.Unpack(root, &archive, filetar.Options{}); err != nil {
		t.Fatal(err)
	}
	return s, filepath.Join(dir, s.Name()), quarantine
}

// status is what git says of a working tree, without what the two sides need not have in common.
func status(t *testing.T, dir string, more ...string) string {
	t.Helper()
	out := git(t, dir, append([]string{"status", "--porcelain=v2", "--branch", "-z"}, more...)...)
	var lines []string
	for line := range strings.SplitSeq(out, "\x00") {
		if !strings.HasPrefix(line, "# branch.upstream") && !strings.HasPrefix(line, "# branch.ab") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// same demands that a guest is as the host, but for untracked files.
func same(t *testing.T, host, guest string) {
	t.Helper()
	git(t, guest, "fsck", "--strict", "--no-dangling")
	if h, g := status(t, host, "--untracked-files=no"), status(t, guest); h != g {
		t.Errorf("the guest's status is not the host's\nhost:\n%s\nguest:\n%s", h, g)
	}
	for _, args := range [][]string{{"diff", "--binary"}, {"diff", "--cached", "--binary"}, {"ls-files", "-s", "-t"}} {
		if h, g := git(t, host, args...), git(t, guest, args...); h != g {
			t.Errorf("git %v differs\nhost:\n%.2000s\nguest:\n%.2000s", args, h, g)
		}
	}
}

// repository makes one with two commits.
func repository(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "project")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "init", "-q", "-b", "main")
	for _, name := range []string{"a", "b", "c", "dir/d", "dir/e", "gone", "old name"} {
		write(t, dir, name, strings.Repeat(name+"\n", 20))
	}
	write(t, dir, ".gitignore", "*.o\n")
	commit(t, dir, "first")
	write(t, dir, "a", "second\n")
	commit(t, dir, "second")
	return dir
}

func commit(t *testing.T, dir, message string) {
	t.Helper()
	git(t, dir, "add", "-A")
	git(t, dir, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", message)
}

func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestShip(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit  func(t *testing.T, dir string)
		src   gitsync.Source
		check func(t *testing.T, s *gitsync.Shipment, guest string)
	}{
		"clean": {edit: func(*testing.T, string) {}, check: func(t *testing.T, s *gitsync.Shipment, guest string) {
			if got := git(t, guest, "rev-list", "--count", "HEAD"); got != "1" {
				t.Errorf("%s commits went, want the newest alone", got)
			}
			if s.Tree != git(t, guest, "rev-parse", "HEAD^{tree}") || s.Files != s.Tree {
				t.Errorf("tree %s, files %s", s.Tree, s.Files)
			}
		}},
		"full": {
			src: gitsync.Source{Full: true}, edit: func(t *testing.T, dir string) { git(t, dir, "tag", "v1", "HEAD~1") },
			check: func(t *testing.T, _ *gitsync.Shipment, guest string) {
				if got := git(t, guest, "rev-list", "--count", "HEAD"); got != "2" {
					t.Errorf("%s commits went", got)
				}
				git(t, guest, "rev-parse", "v1")
			},
		},
		"every kind of change": {edit: func(t *testing.T, dir string) {
			write(t, dir, "a", "modified\n")
			write(t, dir, "b", "staged\n")
			git(t, dir, "add", "b")
			write(t, dir, "b", "staged, and modified\n")
			git(t, dir, "mv", "old name", "new\nname")
			git(t, dir, "rm", "-q", "--cached", "gone")
			try(t, os.Remove(filepath.Join(dir, "gone")))
			try(t, os.Remove(filepath.Join(dir, "dir/d")))
			try(t, os.Chmod(filepath.Join(dir, "c"), 0o755))
			try(t, os.Remove(filepath.Join(dir, "dir/e")))
			try(t, os.Symlink("../a", filepath.Join(dir, "dir/e")))
			write(t, dir, "added", "new\n")
			write(t, dir, "\xff\xfe", "no text\n")
			write(t, dir, "Added", "other\n")
			git(t, dir, "add", "added", "Added", "\xff\xfe")
			write(t, dir, "meant", "later\n")
			git(t, dir, "add", "-N", "meant")
		}},
		"a directory that became a link": {edit: func(t *testing.T, dir string) {
			try(t, os.Rename(filepath.Join(dir, "dir"), filepath.Join(dir, "../elsewhere")))
			try(t, os.Symlink("../elsewhere", filepath.Join(dir, "dir")))
		}, check: func(t *testing.T, _ *gitsync.Shipment, guest string) {
			if _, err := os.Lstat(filepath.Join(guest, "dir")); err == nil {
				t.Error("the guest has the directory")
			}
		}},
		"untracked stays": {
			edit: func(t *testing.T, dir string) { write(t, dir, ".env", "secret"); write(t, dir, "x.o", "") },
			check: func(t *testing.T, s *gitsync.Shipment, guest string) {
				if _, err := os.Lstat(filepath.Join(guest, ".env")); err == nil {
					t.Error("an untracked file went along")
				}
				if len(s.Notices) != 1 || !strings.Contains(s.Notices[0], "1 untracked file") {
					t.Errorf("%q", s.Notices)
				}
			},
		},
		"a conflict": {edit: func(t *testing.T, dir string) {
			git(t, dir, "checkout", "-q", "-b", "other", "HEAD~1")
			write(t, dir, "a", "theirs\n")
			commit(t, dir, "theirs")
			git(t, dir, "checkout", "-q", "main")
			if _, err := tryGit(dir, "merge", "-q", "other"); err == nil {
				t.Fatal("there is no conflict")
			}
		}},
		"detached": {edit: func(t *testing.T, dir string) { git(t, dir, "checkout", "-q", "--detach", "HEAD~1") }},
		"racy": {edit: func(t *testing.T, dir string) {
			// As large as before, and as old as the index.
			write(t, dir, "a", "SECOND\n")
			info, err := os.Stat(filepath.Join(dir, ".git/index"))
			try(t, err)
			try(t, os.Chtimes(filepath.Join(dir, "a"), info.ModTime(), info.ModTime()))
		}},
		"old index formats": {edit: func(t *testing.T, dir string) {
			git(t, dir, "update-index", "--index-version", "4", "--split-index", "--untracked-cache")
			write(t, dir, "b", "staged\n")
			git(t, dir, "add", "b")
		}},
		"sparse": {edit: func(t *testing.T, dir string) {
			git(t, dir, "sparse-checkout", "set", "--cone", "--sparse-index", "nothing")
		}, check: func(t *testing.T, s *gitsync.Shipment, guest string) {
			if s.Tree == s.Files || s.Tree != git(t, guest, "rev-parse", "HEAD^{tree}") {
				t.Errorf("tree %s, files %s", s.Tree, s.Files)
			}
		}},
		"packed": {edit: func(t *testing.T, dir string) { git(t, dir, "gc", "-q"); write(t, dir, "c", "x") }},
		"filters": {edit: func(t *testing.T, dir string) {
			write(t, dir, ".gitattributes", "*.txt text eol=crlf\n")
			write(t, dir, "windows.txt", "a\r\nb\r\n")
			commit(t, dir, "crlf")
			write(t, dir, "more.txt", "a\r\nb\r\n")
			git(t, dir, "add", "more.txt")
		}, check: func(t *testing.T, s *gitsync.Shipment, guest string) {
			if content, _ := os.ReadFile(filepath.Join(guest, "windows.txt")); string(content) != "a\r\nb\r\n" {
				t.Errorf("%q", content)
			}
			if s.Tree == s.Files || s.Tree != git(t, guest, "write-tree") {
				t.Errorf("tree %s, files %s", s.Tree, s.Files)
			}
		}},
		"large files": {edit: func(t *testing.T, dir string) {
			const oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
			write(t, dir, "big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:"+oid+"\nsize 12345\n")
			commit(t, dir, "pointer")
			write(t, dir, ".git/lfs/objects/4d/7a/"+oid, "large")
			write(t, dir, ".git/lfs/objects/ff/ff/"+strings.Repeat("f", 64), "of another commit")
		}, check: func(t *testing.T, _ *gitsync.Shipment, guest string) {
			found, err := filepath.Glob(filepath.Join(guest, ".git/lfs/objects/*/*/*"))
			if err != nil || len(found) != 1 || !strings.Contains(found[0], "4d7a") {
				t.Errorf("%q, %v", found, err)
			}
		}},
		"no secrets of the configuration": {edit: func(t *testing.T, dir string) {
			git(t, dir, "remote", "add", "origin", "https://me:token@example.org/x.git")
			git(t, dir, "config", "http.extraHeader", "Authorization: token")
			write(t, dir, ".git/hooks/post-checkout", "#!/bin/sh\nexit 1\n")
		}, check: func(t *testing.T, _ *gitsync.Shipment, guest string) {
			config, err := os.ReadFile(filepath.Join(guest, ".git/config"))
			if err != nil || strings.Contains(string(config), "token") {
				t.Errorf("%s, %v", config, err)
			}
			if got := git(t, guest, "remote", "get-url", "origin"); got != "https://example.org/x.git" {
				t.Error(got)
			}
			if _, err := os.Lstat(filepath.Join(guest, ".git/hooks")); err == nil {
				t.Error("hooks went along")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := repository(t)
			c.edit(t, dir)
			src := c.src
			src.Path = dir
			s, guest, quarantine := ship(t, src)
			same(t, dir, guest)
			git(t, quarantine, "ls-tree", "-r", s.Tree)
			git(t, quarantine, "ls-tree", "-r", s.Files)
			if c.check != nil {
				c.check(t, s, guest)
			}
		})
	}
}

func TestShipUntracked(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	write(t, dir, "new/file", "x")
	write(t, dir, "x.o", "ignored")
	git(t, dir, "init", "-q", "inner")
	s, guest, quarantine := ship(t, gitsync.Source{Path: filepath.Join(dir, "dir"), Untracked: true})
	if h, g := status(t, dir, "--untracked-files=all"), status(t, guest, "--untracked-files=all"); strings.Replace(h, "\n? inner/", "", 1) != g {
		t.Errorf("host:\n%s\nguest:\n%s", h, g)
	}
	if _, err := os.Lstat(filepath.Join(guest, "x.o")); err == nil {
		t.Error("an ignored file went along")
	}
	if len(s.Notices) != 1 || !strings.Contains(s.Notices[0], "inner/") {
		t.Errorf("%q", s.Notices)
	}
	if !slices.ContainsFunc(s.List(), func(f gitsync.File) bool { return f.Path == "new/file" && f.Size == 1 }) {
		t.Errorf("%+v", s.List())
	}
	if git(t, quarantine, "show", s.Files+":new/file") != "x" {
		t.Error("the tree has not the new file")
	}
}

func TestShipBranch(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	write(t, dir, "b", "modified\n")
	s, guest, _ := ship(t, gitsync.Source{Path: dir, Branch: "new/work"})
	if s.Branch != "new/work" || git(t, guest, "symbolic-ref", "HEAD") != "refs/heads/new/work" || !strings.Contains(status(t, guest), " b") {
		t.Errorf("%+v: %s", s, status(t, guest))
	}
	s, guest, _ = ship(t, gitsync.Source{Path: dir, Branch: "work", From: "HEAD~1"})
	if s.Head != git(t, dir, "rev-parse", "HEAD~1") || git(t, guest, "rev-parse", "HEAD") != s.Head || s.Tree != git(t, dir, "rev-parse", "HEAD~1^{tree}") {
		t.Errorf("%+v", s)
	}
	git(t, guest, "fsck", "--strict")
	if got := git(t, guest, "status", "--porcelain"); got != "" {
		t.Error(got)
	}
	if len(s.Notices) != 1 || !strings.Contains(s.Notices[0], "stay behind") {
		t.Errorf("%q", s.Notices)
	}
}

func TestShipWithoutCommits(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "fresh")
	try(t, os.Mkdir(dir, 0o755))
	git(t, dir, "init", "-q", "-b", "trunk")
	s, guest, _ := ship(t, gitsync.Source{Path: dir})
	if s.Head != "" || s.Branch != "trunk" {
		t.Errorf("%+v", s)
	}
	same(t, dir, guest)
	write(t, dir, "a", "x")
	git(t, dir, "add", "a")
	_, guest, _ = ship(t, gitsync.Source{Path: dir})
	same(t, dir, guest)
	commit(t, guest, "the first")
}

// TestShipLinked ships from a linked working tree of a clone that borrows its objects.
func TestShipLinked(t *testing.T) {
	t.Parallel()
	origin := repository(t)
	base := t.TempDir()
	git(t, base, "clone", "-q", "--shared", origin, "clone")
	git(t, filepath.Join(base, "clone"), "worktree", "add", "-q", "-b", "side", "../linked \"tree")
	dir := filepath.Join(base, "linked \"tree")
	write(t, dir, "b", "staged\n")
	git(t, dir, "add", "b")
	s, guest, quarantine := ship(t, gitsync.Source{Path: dir, Full: true})
	same(t, dir, guest)
	if git(t, quarantine, "show", s.Tree+":b") != "staged" {
		t.Error("the quarantine can't read what was shipped")
	}
	// A shallow clone has no more to give.
	git(t, base, "clone", "-q", "--depth=1", "file://"+origin, "shallow")
	_, guest, _ = ship(t, gitsync.Source{Path: filepath.Join(base, "shallow"), Full: true})
	same(t, filepath.Join(base, "shallow"), guest)
}

func TestShipSubmodules(t *testing.T) {
	t.Parallel()
	leaf, middle, dir := repository(t), repository(t), repository(t)
	add := func(in, what, as string) {
		git(t, in, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", what, as)
		commit(t, in, "with submodule")
	}
	add(middle, leaf, "deep/leaf")
	add(dir, middle, "middle")
	git(t, dir, "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive")
	add(dir, leaf, "empty")
	git(t, dir, "submodule", "--quiet", "deinit", "-f", "empty")
	write(t, dir, "middle/b", "modified in the submodule\n")
	write(t, dir, "middle/deep/leaf/c", "modified deep\n")
	s, guest, _ := ship(t, gitsync.Source{Path: dir})
	same(t, dir, guest)
	for _, in := range []string{"middle", "middle/deep/leaf"} {
		same(t, filepath.Join(dir, in), filepath.Join(guest, in))
	}
	if h, g := git(t, dir, "submodule", "status", "--recursive"), git(t, guest, "submodule", "status", "--recursive"); commits(h) != commits(g) {
		t.Errorf("host %s\nguest %s", h, g)
	}
	if len(s.Notices) != 1 || !strings.Contains(s.Notices[0], "empty") {
		t.Errorf("%q", s.Notices)
	}
}

// commits leaves out of `git submodule status` what git describe makes of the commits.
func commits(status string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(status, "\n") {
		fields := strings.Fields(line)
		fmt.Fprintln(&b, fields[0], fields[1])
	}
	return b.String()
}

func TestShipRefuses(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	bare := filepath.Join(t.TempDir(), "bare.git")
	git(t, dir, "clone", "-q", "--bare", dir, bare)
	for name, c := range map[string]struct {
		src  gitsync.Source
		kind fault.Kind
		says string
	}{
		"no repository":    {gitsync.Source{Path: t.TempDir()}, fault.Invalid, "not a git repository"},
		"nothing there":    {gitsync.Source{Path: filepath.Join(dir, "nosuch")}, fault.NotFound, "nosuch"},
		"bare":             {gitsync.Source{Path: bare}, fault.Invalid, "no working tree"},
		"in .git":          {gitsync.Source{Path: filepath.Join(dir, ".git")}, fault.Invalid, "no working tree"},
		"from nowhere":     {gitsync.Source{Path: dir, Branch: "x", From: "nosuch"}, fault.NotFound, "nosuch"},
		"from an option":   {gitsync.Source{Path: dir, Branch: "x", From: "--all"}, fault.NotFound, "--all"},
		"from, no branch":  {gitsync.Source{Path: dir, From: "HEAD"}, fault.Invalid, "no branch"},
		"no branch's name": {gitsync.Source{Path: dir, Branch: "a..b"}, fault.Invalid, "a..b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := gitsync.Plan(t.Context(), c.src, t.TempDir())
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want kind %v and %q", err, c.kind, c.says)
			}
		})
	}
}

// TestShipRunsNothing ships a repository whose configuration would run programs.
func TestShipRunsNothing(t *testing.T) {
	t.Parallel()
	dir, mark := repository(t), filepath.Join(t.TempDir(), "ran")
	hook := "#!/bin/sh\ntouch " + mark + "\n"
	for _, name := range []string{"post-index-change", "post-checkout", "pre-auto-gc", "reference-transaction", "fsmonitor"} {
		write(t, dir, ".git/hooks/"+name, hook)
		try(t, os.Chmod(filepath.Join(dir, ".git/hooks", name), 0o755))
	}
	script := filepath.Join(dir, ".git/hooks/fsmonitor")
	git(t, dir, "update-index", "-q", "--refresh")
	for _, key := range []string{"core.fsmonitor", "core.pager", "core.editor", "core.askPass", "core.sshCommand", "diff.external", "credential.helper"} {
		git(t, dir, "config", key, script)
	}
	try(t, os.RemoveAll(mark))
	write(t, dir, "b", "modified\n")
	s, err := gitsync.Plan(t.Context(), gitsync.Source{Path: dir, Branch: "x", From: "HEAD~1"}, t.TempDir())
	try(t, err)
	_, err = s.Pack(t.Context(), nil)
	try(t, err)
	s, err = gitsync.Plan(t.Context(), gitsync.Source{Path: dir, Untracked: true}, t.TempDir())
	try(t, err)
	_, err = s.Pack(t.Context(), nil)
	try(t, err)
	if _, err := os.Stat(mark); err == nil {
		t.Error("a program of the repository ran")
	}
}

// TestShipRandom edits repositories at random and compares both sides.
func TestShipRandom(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			r, dir := rand.New(rand.NewPCG(seed, 0)), repository(t) //nolint:gosec // a test's choices
			for range 15 {
				randomEdit(t, r, dir)
			}
			s, guest, _ := ship(t, gitsync.Source{Path: dir, Full: r.IntN(2) == 0})
			same(t, dir, guest)
			git(t, guest, "add", "-u")
			if tree := git(t, guest, "write-tree"); tree != s.Tree {
				t.Errorf("git makes the tree %s in the guest, recorded is %s", tree, s.Tree)
			}
		})
	}
}

func randomEdit(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	name := []string{"a", "b", "c", "dir/d", "dir/e", "dir/f", "g", "h i", "ü", "j\nk"}[r.IntN(10)]
	path := filepath.Join(dir, name)
	switch r.IntN(7) {
	case 0, 1:
		_ = os.Remove(path)
		write(t, dir, name, strings.Repeat("x", r.IntN(100)))
	case 2:
		_ = os.Remove(path)
	case 3:
		_ = os.Remove(path)
		try(t, os.MkdirAll(filepath.Dir(path), 0o755))
		try(t, os.Symlink("target", path))
	case 4:
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			try(t, os.Chmod(path, info.Mode().Perm()^0o111))
		}
	case 5:
		_, _ = tryGit(dir, "add", "--all", "--", name) // fails if there is nothing
	case 6:
		if git(t, dir, "status", "--porcelain") != "" {
			commit(t, dir, "random")
		}
	}
}
