package gitsync_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/gitsync"
)

// pair is a repository of a host and what a guest made of it.
type pair struct {
	t                 *testing.T
	host, guest, base string
	shipped           gitsync.Base
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := tryGit(dir, args...)
	if err != nil {
		t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSuffix(out, "\n")
}

func tryGit(dir string, args ...string) (string, error) { return gitWith(nil, dir, args...) }

func gitWith(env []string, dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ann", "GIT_AUTHOR_EMAIL=ann@example.org", "GIT_COMMITTER_NAME=Ann", "GIT_COMMITTER_EMAIL=ann@example.org")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newPair makes a repository with files, commits it, lets edit change the working tree, and ships it.
func newPair(t *testing.T, files map[string]string, edit func(host string)) *pair {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	host := filepath.Join(t.TempDir(), "host")
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	git(t, host, "init", "-q", "-b", "main")
	for name, content := range files {
		write(t, host, name, content)
	}
	git(t, host, "add", "-A", "-f")
	git(t, host, "commit", "-q", "--allow-empty", "-m", "first")
	if edit != nil {
		edit(host)
	}
	return pairOf(t, host)
}

// pairOf does what prepare does: a bare repository beside the host's, with the working tree as a tree, and a guest with it all.
func pairOf(t *testing.T, host string) *pair {
	t.Helper()
	dir := filepath.Dir(host)
	p := &pair{t: t, host: host, guest: filepath.Join(dir, "guest"), base: filepath.Join(dir, "base")}
	git(t, p.host, "config", "user.name", "Ann")
	git(t, p.host, "config", "user.email", "ann@example.org")
	git(t, dir, "init", "-q", "--bare", "--object-format="+git(t, p.host, "rev-parse", "--show-object-format"), p.base)
	write(t, p.base, "objects/info/alternates", filepath.Join(p.host, ".git/objects")+"\n")
	index := filepath.Join(dir, "index")
	run := func(args ...string) string {
		args = append([]string{"--git-dir=" + p.base, "--work-tree=" + p.host, "-c", "core.bare=false"}, args...)
		out, err := gitWith([]string{"GIT_INDEX_FILE=" + index}, p.host, args...)
		if err != nil {
			t.Fatal(err, out)
		}
		return strings.TrimSpace(out)
	}
	p.shipped = gitsync.Base{Repo: p.base, Host: p.host}
	if head, err := tryGit(p.host, "rev-parse", "--verify", "HEAD"); err == nil {
		p.shipped.Head = strings.TrimSpace(head)
		run("read-tree", p.shipped.Head)
	}
	run("add", "-u")
	p.shipped.Tree = run("write-tree")
	if out, err := exec.Command("cp", "-a", p.host, p.guest).CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	return p
}

// archive packs a directory as the guest's agent does, then adds entries.
func (p *pair) archive(extra ...entry) []byte {
	p.t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := filepath.WalkDir(p.guest, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link, _ := os.Readlink(path)
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(filepath.Dir(p.guest), path)
		if h.Name, h.Format = rel, tar.FormatPAX; info.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err == nil {
			_, err = w.Write(content)
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range extra {
		e.write(p.t, w)
	}
	if err := w.Close(); err != nil {
		p.t.Fatal(err)
	}
	return out.Bytes()
}

// entry is one entry of a forged archive.
type entry struct {
	name, content, link string
	typ                 byte
}

func (e entry) write(t *testing.T, w *tar.Writer) {
	t.Helper()
	h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Mode: 0o644, Size: int64(len(e.content)), Format: tar.FormatPAX}
	if e.typ == 0 {
		h.Typeflag = tar.TypeReg
	}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(e.content)); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) collect(extra ...entry) *gitsync.Changes {
	p.t.Helper()
	c, err := gitsync.Collect(p.t.Context(), p.t.TempDir(), p.shipped, bytes.NewReader(p.archive(extra...)), gitsync.Limits{})
	if err != nil {
		p.t.Fatalf("collect: %v", err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

func diff(t *testing.T, c *gitsync.Changes) string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Diff(context.Background(), &out, false); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// digest is a hash of all names, modes and contents below a directory.
func digest(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(h, "%s %s\x00", path, info.Mode())
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			_, _ = fmt.Fprintf(h, "%d %s", len(content), content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func fileDigest(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func notices(c *gitsync.Changes) string { return strings.Join(c.Notices(), "\n") }

func TestNothingChanged(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1\n", "d/b": "2\n"}, nil)
	before := digest(t, p.host)
	c := p.collect()
	if d := diff(t, c); d != "" || c.Changed() || c.Commit() != "" || notices(c) != "" {
		t.Errorf("diff %q, changed %v, commit %q, notices %q", d, c.Changed(), c.Commit(), notices(c))
	}
	if _, err := c.Export(t.Context(), "x", "vm", false); !fault.Is(err, fault.Precondition) {
		t.Errorf("export of nothing: %v", err)
	}
	if digest(t, p.host) != before {
		t.Error("the host's repository was changed")
	}
}

func TestIgnoredStaysOut(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{".gitignore": "*.o\n!keep.o\nout/\n", "kept.o": "shipped\n"}, func(host string) {
		write(t, host, ".git/info/exclude", "secret\n")
	})
	write(t, p.guest, "x.o", "left out")
	write(t, p.guest, "keep.o", "taken\n")
	write(t, p.guest, "out/deep/file", "left out")
	write(t, p.guest, "secret", "left out")
	write(t, p.guest, "sub/.gitignore", "*.tmp\n")
	write(t, p.guest, "sub/a.tmp", "left out")
	write(t, p.guest, "sub/a.txt", "taken\n")
	write(t, p.guest, "kept.o", "changed\n")
	write(t, p.guest, "forced.o", "committed\n")
	git(t, p.guest, "add", "-f", "forced.o")
	git(t, p.guest, "commit", "-q", "-m", "forced")
	d := diff(t, p.collect())
	if strings.Contains(d, "left out") {
		t.Errorf("ignored files came along:\n%s", d)
	}
	for _, want := range []string{"b/keep.o", "b/sub/a.txt", "b/kept.o", "b/forced.o", "b/sub/.gitignore"} {
		if !strings.Contains(d, want) {
			t.Errorf("%s is missing in\n%s", want, d)
		}
	}
}

// TestHostile gives the host what no honest guest sends. Nothing of it may appear in the patch, run, or touch the host.
func TestHostile(t *testing.T) {
	t.Parallel()
	evil := "evil content\n"
	cases := map[string]struct {
		extra  []entry
		edit   func(t *testing.T, p *pair, marker string)
		notice string // must be told
		want   string // must be in the patch
	}{
		"dot git in disguise": {extra: []entry{
			{name: "guest/.GIT/hooks/post-commit", content: evil},
			{name: "guest/d/.Git/config", content: evil},
			{name: "guest/git~1/config", content: evil},
			{name: "guest/.git. /config", content: evil},
			{name: "guest/.git::$INDEX_ALLOCATION/config", content: evil},
			{name: "guest/.g\u200cit/config", content: evil},
			{name: "guest/a\\.git\\config", content: evil},
		}, notice: "names that git forbids"},
		"traversal": {extra: []entry{
			{name: "guest/../../evil", content: evil},
			{name: "/guest/../evil", content: evil},
			{name: "guest//evil", content: evil},
			{name: "guest/./evil", content: evil},
			{name: "guest/" + strings.Repeat("x", 300), content: evil},
		}, notice: "names that git forbids"},
		"newline in a name": {extra: []entry{{name: "guest/new\nline", content: "fine\n"}}, want: `"b/new\nline"`},
		"links and devices": {extra: []entry{
			{name: "guest/dev", typ: tar.TypeChar},
			{name: "guest/fifo", typ: tar.TypeFifo},
			{name: "guest/hard", typ: tar.TypeLink, link: "/etc/passwd"},
			{name: "guest/soft", typ: tar.TypeSymlink, link: "/etc/shadow"},
		}, notice: "devices", want: "+/etc/shadow"},
		"through a symbolic link": {extra: []entry{
			{name: "guest/l", typ: tar.TypeSymlink, link: "/tmp"}, {name: "guest/l/evil", content: evil},
		}, want: "new file mode 120000"},
		"submodule URL": {extra: []entry{
			{name: "guest/.gitmodules", content: "[submodule \"x\"]\n path = x\n url = --upload-pack=evil content\n"},
		}},
		"configuration": {edit: func(t *testing.T, p *pair, marker string) {
			write(t, p.guest, "a.txt", "changed\n")
			write(t, p.guest, ".gitattributes", "*.txt filter=evil diff=evil merge=evil text eol=crlf working-tree-encoding=UTF-16\n")
			run := "touch " + marker
			for _, kv := range [][2]string{
				{"core.fsmonitor", run},
				{"filter.evil.clean", run},
				{"filter.evil.smudge", run},
				{"diff.evil.textconv", run},
				{"diff.external", run},
				{"merge.evil.driver", run},
				{"core.pager", run},
				{"core.sshCommand", run},
			} {
				git(t, p.guest, "config", kv[0], kv[1])
			}
			write(t, p.guest, ".git/hooks/pre-commit", "#!/bin/sh\n"+run+"\n")
			write(t, p.guest, ".git/objects/info/alternates", "/etc\n")
			write(t, p.guest, ".git/info/attributes", "* diff=evil\n")
		}, want: "+changed"},
		"no repository": {edit: func(t *testing.T, p *pair, _ string) {
			write(t, p.guest, "a.txt", "changed\n")
			_ = os.RemoveAll(filepath.Join(p.guest, ".git"))
		}, notice: "no repository", want: "+changed"},
		"garbage for a head": {edit: func(t *testing.T, p *pair, _ string) {
			write(t, p.guest, "a.txt", "changed\n")
			write(t, p.guest, ".git/HEAD", "../../../etc/passwd\n")
		}, notice: "are left out", want: "+changed"},
		"head without a commit": {edit: func(t *testing.T, p *pair, _ string) {
			write(t, p.guest, ".git/HEAD", strings.Repeat("1", 40)+"\n")
		}, notice: "are left out"},
		"another history": {edit: func(t *testing.T, p *pair, _ string) {
			write(t, p.guest, "a.txt", "changed\n")
			git(t, p.guest, "commit", "-q", "--amend", "-a", "-m", "amended")
		}, notice: "do not build on", want: "+changed"},
		"forged object": {edit: func(t *testing.T, p *pair, _ string) {
			id := git(t, p.guest, "hash-object", "-w", "a.txt")
			write(t, p.guest, "other", "other")
			other := git(t, p.guest, "hash-object", "-w", "other")
			from := filepath.Join(p.guest, ".git/objects", other[:2], other[2:])
			forged := filepath.Join(p.guest, ".git/objects/12", strings.Repeat("3", 38))
			_ = os.MkdirAll(filepath.Dir(forged), 0o755)
			if err := os.Rename(from, forged); err != nil {
				t.Fatal(err, id)
			}
		}, notice: "in truth", want: "+other"},
		"damaged pack": {edit: func(t *testing.T, p *pair, _ string) {
			write(t, p.guest, "a.txt", "changed\n")
			git(t, p.guest, "commit", "-q", "-a", "-m", "second")
			write(t, p.guest, ".git/objects/pack/pack-1.pack", "PACK\x00\x00\x00\x02\x00\x00\x00\x01\xb0junk")
		}, notice: "a pack of the guest", want: "+changed"},
		"a tree with .git in it": {edit: func(t *testing.T, p *pair, _ string) {
			blob := git(t, p.guest, "hash-object", "-w", "a.txt")
			cmd := exec.Command("git", "mktree")
			cmd.Dir, cmd.Stdin = p.guest, strings.NewReader("100644 blob "+blob+"\t.git\n")
			tree, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			commit := git(t, p.guest, "commit-tree", "-p", "HEAD", "-m", "evil", strings.TrimSpace(string(tree)))
			git(t, p.guest, "update-ref", "refs/heads/main", commit)
		}, notice: "are left out"},
		"a commit with a submodule": {edit: func(t *testing.T, p *pair, _ string) {
			git(t, p.guest, "update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",sub")
			git(t, p.guest, "commit", "-q", "-m", "sub")
		}, notice: "change a submodule"},
		"a submodule that comes and goes, in a merge": {edit: func(t *testing.T, p *pair, _ string) {
			git(t, p.guest, "commit", "-q", "--allow-empty", "-m", "before")
			git(t, p.guest, "checkout", "-q", "-b", "side")
			git(t, p.guest, "update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",sub")
			git(t, p.guest, "commit", "-q", "-m", "sub")
			git(t, p.guest, "rm", "-q", "--cached", "sub")
			git(t, p.guest, "commit", "-q", "-m", "no sub")
			git(t, p.guest, "checkout", "-q", "main")
			git(t, p.guest, "commit", "-q", "--allow-empty", "-m", "main")
			git(t, p.guest, "merge", "-q", "-m", "merge", "side")
			git(t, p.guest, "commit", "-q", "--allow-empty", "-m", "after")
		}, notice: "change a submodule"},
		"a nested repository": {edit: func(t *testing.T, p *pair, _ string) {
			write(t, p.guest, "inner/file", evil)
			git(t, filepath.Join(p.guest, "inner"), "init", "-q")
		}, notice: `repositories in the workspace were left out: "inner"`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, map[string]string{"a.txt": "first\n"}, nil)
			marker := filepath.Join(t.TempDir(), "ran")
			if tc.edit != nil {
				tc.edit(t, p, marker)
			}
			before := digest(t, p.host)
			c := p.collect(tc.extra...)
			d := diff(t, c)
			if strings.Contains(d, "evil content") || tc.want != "" && !strings.Contains(d, tc.want) {
				t.Errorf("patch (want %q):\n%s", tc.want, d)
			}
			if tc.notice == "" != (notices(c) == "") || !strings.Contains(notices(c), tc.notice) {
				t.Errorf("notices %q, want %q", notices(c), tc.notice)
			}
			if digest(t, p.host) != before {
				t.Error("the host's repository was changed by looking")
			}
			if _, err := c.Export(t.Context(), "changes", "devbox", false); err != nil && !fault.Is(err, fault.Precondition) {
				t.Errorf("export: %v", err)
			}
			git(t, p.host, "fsck", "--strict", "--full")
			if _, err := os.Stat(marker); err == nil {
				t.Error("something of the guest's ran on the host")
			}
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1\n"}, nil)
	write(t, p.guest, "large", strings.Repeat("x", 200<<10))
	for name, limits := range map[string]gitsync.Limits{
		"archive": {Archive: 64 << 10}, "entries": {Entries: 3}, "object": {Object: 100 << 10},
	} {
		scratch := t.TempDir()
		_, err := gitsync.Collect(t.Context(), scratch, p.shipped, bytes.NewReader(p.archive()), limits)
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(scratch); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
}

// TestRepositories are those that are not like most.
func TestRepositories(t *testing.T) {
	t.Parallel()
	cases := map[string]func(t *testing.T, host string){
		"without commits": func(t *testing.T, host string) { git(t, filepath.Dir(host), "init", "-q", "-b", "main", host) },
		"sha256": func(t *testing.T, host string) {
			git(t, filepath.Dir(host), "init", "-q", "-b", "main", "--object-format=sha256", host)
			write(t, host, "a", "1\n")
			git(t, host, "add", "a")
			git(t, host, "commit", "-q", "-m", "first")
		},
		"shallow": func(t *testing.T, host string) {
			full := filepath.Join(t.TempDir(), "full")
			git(t, filepath.Dir(host), "init", "-q", "-b", "main", full)
			for i := range 3 {
				write(t, full, "a", fmt.Sprint(i))
				git(t, full, "add", "a")
				git(t, full, "commit", "-q", "-m", "c")
			}
			git(t, filepath.Dir(host), "clone", "-q", "--depth=1", "file://"+full, host)
		},
	}
	for name, build := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath("git"); err != nil {
				t.Skip("git is not installed")
			}
			host := filepath.Join(t.TempDir(), "host")
			build(t, host)
			p := pairOf(t, host)
			write(t, p.guest, "b", "committed\n")
			git(t, p.guest, "add", "b")
			git(t, p.guest, "commit", "-q", "-m", "in the guest")
			git(t, p.guest, "gc", "-q")
			write(t, p.guest, "c", "not committed\n")
			c := p.collect()
			if c.Commit() == "" || notices(c) != "" {
				t.Fatalf("commit %q, notices %q", c.Commit(), notices(c))
			}
			b, err := c.Export(t.Context(), "x", "devbox", false)
			if err != nil || b.Commits != 2 {
				t.Fatalf("%+v, %v", b, err)
			}
			git(t, p.host, "fsck", "--strict", "--full")
			if got := git(t, p.host, "show", "x:b") + git(t, p.host, "show", "x:c"); got != "committednot committed" {
				t.Errorf("files: %q", got)
			}
			if a, err := c.Apply(t.Context(), "devbox", false); err != nil || len(a.Changed) != 2 || len(a.Conflicts) != 0 {
				t.Errorf("apply: %+v, %v", a, err)
			}
		})
	}
}

// TestRoundTrip edits both sides at random. Git is the judge: the patch makes the host's files those of the guest, the
// exported branch is sound and has the same tree, and nothing else has changed on the host.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			files := map[string]string{}
			for i := range 12 {
				files[fmt.Sprintf("d%d/f%d", i%4, i)] = lines(r, 20)
			}
			p := newPair(t, files, func(host string) {
				if seed%2 == 1 {
					edit(t, r, host, files)
				}
			})
			for range 2 {
				edit(t, r, p.guest, files)
				if r.IntN(2) == 0 {
					git(t, p.guest, "add", "-A")
					git(t, p.guest, "commit", "-q", "--allow-empty", "-m", "in the guest")
				}
			}
			if r.IntN(2) == 0 {
				git(t, p.guest, "gc", "-q")
			}
			edit(t, r, p.guest, files)
			c := p.collect()
			patch := diff(t, c)
			untouched := map[string]string{}
			for _, sub := range []string{".git/index", ".git/HEAD", ".git/config"} {
				untouched[sub] = fileDigest(t, filepath.Join(p.host, sub))
			}
			branch, err := c.Export(t.Context(), "from-guest", "devbox", false)
			if err != nil {
				t.Fatal(err)
			}
			git(t, p.host, "fsck", "--strict", "--full")
			git(t, p.host, "diff", "--exit-code", "--quiet", branch.Commit, "from-guest")
			git(t, p.host, "merge-base", "--is-ancestor", "HEAD", "from-guest")
			git(t, p.host, "update-ref", "-d", "refs/heads/from-guest")
			for _, sub := range []string{".git/index", ".git/HEAD", ".git/config"} {
				if fileDigest(t, filepath.Join(p.host, sub)) != untouched[sub] {
					t.Errorf("export changed %s", sub)
				}
			}
			// The patch applies to what was shipped and gives the guest's files.
			check := filepath.Join(t.TempDir(), "check")
			git(t, p.host, "clone", "-q", "--no-local", p.host, check)
			git(t, check, "fetch", "-q", p.base, "+refs/*:refs/remotes/base/*")
			write(t, check, ".git/objects/info/alternates", filepath.Join(p.base, "objects")+"\n")
			git(t, check, "read-tree", "-u", "--reset", p.shipped.Tree)
			write(t, filepath.Dir(check), "patch", patch)
			if patch != "" {
				git(t, check, "apply", "--index", "--whitespace=nowarn", filepath.Join(filepath.Dir(check), "patch"))
			}
			git(t, p.guest, "add", "-A")
			if got, want := git(t, check, "write-tree"), git(t, p.guest, "write-tree"); got != want {
				t.Errorf("the patch gives tree %s, the guest has %s", got, want)
			}
		})
	}
}

func lines(r *rand.Rand, n int) string {
	var b strings.Builder
	for range n {
		fmt.Fprintf(&b, "line %d\n", r.IntN(1000))
	}
	return b.String()
}

// edit changes, removes, adds, renames and replaces files.
func edit(t *testing.T, r *rand.Rand, dir string, files map[string]string) {
	t.Helper()
	names := []string{}
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(dir, name)
		switch r.IntN(8) {
		case 0:
			write(t, dir, name, lines(r, 20))
		case 1:
			_ = os.Remove(path)
		case 2:
			_ = os.Chmod(path, 0o755)
		case 3:
			_ = os.Remove(path)
			_ = os.MkdirAll(filepath.Dir(path), 0o755)
			_ = os.Symlink("../target "+fmt.Sprint(r.IntN(9)), path)
		case 4:
			_ = os.Rename(path, path+"-moved")
		case 5:
			_ = os.Remove(path)
			write(t, dir, name, string([]byte{0, 1, 2, byte(r.IntN(256)), 0xff})+lines(r, 3))
		}
	}
	write(t, dir, fmt.Sprintf("new/ü \"%d\"\n", r.IntN(100)), lines(r, 2))
}
