package gitsync_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/fault"
)

func read(t *testing.T, dir, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestBranch makes commits in the guest and leaves changes uncommitted there.
func TestBranch(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1\n"}, nil)
	write(t, p.guest, "b", "committed\n")
	git(t, p.guest, "add", "b")
	git(t, p.guest, "commit", "-q", "-m", "add b", "--author", "Eve <eve@example.org>")
	write(t, p.guest, "c", "staged\n")
	git(t, p.guest, "add", "c")
	write(t, p.guest, "d", "new\n")
	write(t, p.host, "host", "moved on\n")
	git(t, p.host, "add", "host")
	git(t, p.host, "commit", "-q", "-m", "moved on")
	c := p.collect()
	b, err := c.Export(t.Context(), "topic/from-vm", "devbox", false)
	if err != nil || b.Commits != 2 {
		t.Fatalf("%+v, %v", b, err)
	}
	log := git(t, p.host, "log", "--format=%an: %s", "main~1..topic/from-vm")
	if want := "Ann: changes in VM devbox not committed\nEve: add b"; log != want {
		t.Errorf("log:\n%s\nwant:\n%s", log, want)
	}
	if got := git(t, p.host, "ls-tree", "--name-only", "topic/from-vm"); got != "a\nb\nc\nd" {
		t.Errorf("files: %q", got)
	}
	if status := git(t, p.host, "status", "--porcelain"); status != "" {
		t.Errorf("status: %s", status)
	}
	info, err := os.Stat(filepath.Join(p.host, ".git/refs/heads/topic/from-vm"))
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the ref's mode: %v, %v", info.Mode(), err)
	}
	for name, kind := range map[string]fault.Kind{
		"topic/from-vm": fault.Exists, "main": fault.Precondition, "HEAD": fault.Invalid, "a..b": fault.Invalid, "-f": fault.Invalid,
	} {
		if _, err := c.Export(t.Context(), name, "devbox", false); !fault.Is(err, kind) {
			t.Errorf("branch %q: %v, want %s", name, err, kind)
		}
	}
	if _, err := c.Export(t.Context(), "topic/from-vm", "devbox", true); err != nil {
		t.Errorf("with force: %v", err)
	}
	if _, err := c.Export(t.Context(), "main", "devbox", true); !fault.Is(err, fault.Precondition) {
		t.Errorf("the branch that is checked out, with force: %v", err)
	}
}

// TestBranchOfLocalModifications keeps apart what was modified on the host and what was in the guest.
func TestBranchOfLocalModifications(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "1\n"}, func(host string) { write(t, host, "a", "modified on the host\n") })
	write(t, p.guest, "b", "new\n")
	if b, err := p.collect().Export(t.Context(), "x", "devbox", false); err != nil || b.Commits != 2 {
		t.Fatalf("%+v, %v", b, err)
	}
	if got := git(t, p.host, "log", "--format=%s", "--name-only", "main..x"); got !=
		"changes in VM devbox not committed\n\nb\nlocal modifications as shipped to VM devbox\n\na" {
		t.Errorf("log: %q", got)
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	ten := "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n"
	p := newPair(t, map[string]string{"both": ten, "gone": "x\n", "run": "#!/bin/sh\n", "moved": ten + "moved\n", "dir/f": "f\n", "bin": "\x00old"}, nil)
	write(t, p.guest, "both", strings.Replace(ten, "2\n", "two\n", 1))
	write(t, p.host, "both", strings.Replace(ten, "9\n", "nine\n", 1))
	if err := os.Remove(filepath.Join(p.guest, "gone")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(p.guest, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	git(t, p.guest, "mv", "moved", "elsewhere")
	write(t, p.host, "moved", "0\n"+ten+"moved\n")
	git(t, p.guest, "rm", "-q", "dir/f")
	write(t, p.guest, "dir", "a file now\n")
	write(t, p.guest, "bin", "\x00new")
	write(t, p.guest, "new/deep/ü\n", "new\n")
	if err := os.Symlink("../../../etc/passwd", filepath.Join(p.guest, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, p.host, "later", "the host moved on\n")
	git(t, p.host, "add", "later")
	git(t, p.host, "commit", "-q", "-m", "later")
	index := fileDigest(t, filepath.Join(p.host, ".git/index"))
	c := p.collect()

	before := digest(t, p.host)
	if a, err := c.Apply(t.Context(), "devbox", true); err != nil || len(a.Changed) == 0 || digest(t, p.host) != before {
		t.Fatalf("dry run: %+v, %v; it must change nothing", a, err)
	}
	a, err := c.Apply(t.Context(), "devbox", false)
	if err != nil || len(a.Conflicts) != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	want := map[string]string{
		"both": strings.NewReplacer("2\n", "two\n", "9\n", "nine\n").Replace(ten), "elsewhere": "0\n" + ten + "moved\n",
		"dir": "a file now\n", "bin": "\x00new", "new/deep/ü\n": "new\n", "later": "the host moved on\n",
	}
	for name, content := range want {
		if got := read(t, p.host, name); got != content {
			t.Errorf("%s: %q, want %q", name, got, content)
		}
	}
	for _, name := range []string{"gone", "moved"} {
		if _, err := os.Lstat(filepath.Join(p.host, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if link, err := os.Readlink(filepath.Join(p.host, "link")); err != nil || link != "../../../etc/passwd" {
		t.Errorf("link: %q, %v", link, err)
	}
	for name, mode := range map[string]os.FileMode{"run": 0o755, "elsewhere": 0o644, "new/deep": 0o755 | os.ModeDir} {
		if info, err := os.Lstat(filepath.Join(p.host, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, mode)
		}
	}
	if fileDigest(t, filepath.Join(p.host, ".git/index")) != index {
		t.Error("the index was written")
	}
	git(t, p.host, "fsck", "--strict")
}

func TestApplyConflict(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"a": "base\n", "bin": "\x00base", "removed": "base\n"}, nil)
	write(t, p.guest, "a", "guest\n")
	write(t, p.host, "a", "host\n")
	write(t, p.guest, "bin", "\x00guest")
	write(t, p.host, "bin", "\x00host")
	if err := os.Remove(filepath.Join(p.guest, "removed")); err != nil {
		t.Fatal(err)
	}
	write(t, p.host, "removed", "changed on the host\n")
	a, err := p.collect().Apply(t.Context(), "devbox", false)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Sort(a.Conflicts); !slices.Equal(a.Conflicts, []string{"a", "bin", "removed"}) {
		t.Errorf("conflicts: %q", a.Conflicts)
	}
	if got, want := read(t, p.host, "a"), "<<<<<<< working-tree\nhost\n=======\nguest\n>>>>>>> vm/devbox\n"; got != want {
		t.Errorf("a: %q, want %q", got, want)
	}
	if got := read(t, p.host, "bin") + read(t, p.host, "removed"); got != "\x00hostchanged on the host\n" {
		t.Errorf("what is the host's was lost: %q", got)
	}
}

// TestApplyRefuses would overwrite what git does not know, or write where a link of the host leads.
func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	cases := map[string]func(t *testing.T, p *pair){
		"untracked file": func(t *testing.T, p *pair) {
			write(t, p.guest, "new", "guest\n")
			write(t, p.host, "new", "precious\n")
		},
		"untracked file where a directory comes": func(t *testing.T, p *pair) {
			write(t, p.guest, "new/file", "guest\n")
			write(t, p.host, "new", "precious\n")
		},
		"untracked directory where a file comes": func(t *testing.T, p *pair) {
			write(t, p.guest, "new", "guest\n")
			write(t, p.host, "new/file", "precious\n")
		},
		"link of the host": func(t *testing.T, p *pair) {
			write(t, p.guest, "dir/new", "guest\n")
			if err := os.Symlink(outside, filepath.Join(p.host, "dir")); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, prepare := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, map[string]string{"a": "base\n"}, nil)
			prepare(t, p)
			write(t, p.guest, "a", "guest\n")
			before := digest(t, p.host)
			if _, err := p.collect().Apply(t.Context(), "devbox", false); !fault.Is(err, fault.Precondition) {
				t.Errorf("apply: %v", err)
			}
			if digest(t, p.host) != before {
				t.Error("something was written")
			}
		})
	}
	t.Cleanup(func() {
		if left, _ := os.ReadDir(outside); len(left) > 0 {
			t.Errorf("written outside: %v", left)
		}
	})
}
