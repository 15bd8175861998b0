package gitsync_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/gitsync"
)

// TestShipAndCollect ships repositories whose files are not what git's objects say, and collects them: what nobody changed is
// no change, and what the guest changes comes back alone.
func TestShipAndCollect(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(t *testing.T, dir string){
		"plain": func(*testing.T, string) {},
		"staged, modified, deleted": func(t *testing.T, dir string) {
			write(t, dir, "a", "staged\n")
			git(t, dir, "add", "a")
			write(t, dir, "a", "modified\n")
			try(t, os.Remove(filepath.Join(dir, "gone")))
			git(t, dir, "mv", "old name", "new name")
			write(t, dir, "untracked", "stays behind\n")
			write(t, dir, "x.o", "ignored\n")
		},
		"line endings": func(t *testing.T, dir string) {
			write(t, dir, ".gitattributes", "b text eol=crlf\n")
			commit(t, dir, "attributes")
			try(t, os.Remove(filepath.Join(dir, "b")))
			git(t, dir, "checkout", "b")
			if !strings.Contains(read(t, dir, "b"), "\r\n") {
				t.Fatal("b has no carriage returns: the test shows nothing")
			}
		},
		"filter": func(t *testing.T, dir string) {
			git(t, dir, "config", "filter.long.clean", "sed s/long-c/c/")
			git(t, dir, "config", "filter.long.smudge", "sed s/c/long-c/")
			write(t, dir, ".gitattributes", "c filter=long\n")
			commit(t, dir, "attributes")
			try(t, os.Remove(filepath.Join(dir, "c")))
			git(t, dir, "checkout", "c")
		},
		"sparse checkout": func(t *testing.T, dir string) {
			git(t, dir, "sparse-checkout", "set", "--no-cone", "/*", "!/dir/")
		},
		"submodule": func(t *testing.T, dir string) {
			git(t, dir, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "file://"+repository(t), "sub")
			commit(t, dir, "submodule")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := repository(t)
			edit(t, host)
			s, guest, quarantine := ship(t, gitsync.Source{Path: host})
			p := &pair{t: t, host: host, guest: guest, base: quarantine, shipped: gitsync.Base{
				Repo: quarantine, Head: s.Head, Tree: s.Tree, Files: s.Files, Host: host,
			}}
			before := digest(t, host)
			if c := p.collect(); c.Changed() || diff(t, c) != "" {
				t.Errorf("a change that nobody made:\n%s", diff(t, c))
			}
			write(t, guest, "fresh/new", "new\n")
			git(t, guest, "add", "fresh/new")
			git(t, guest, "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "-m", "in the guest", "fresh/new")
			c := p.collect()
			if c.Commit() == "" {
				t.Errorf("the guest's commit is not known: %s", notices(c))
			}
			if d := diff(t, c); strings.Count(d, "diff --git") != 1 || !strings.Contains(d, "b/fresh/new") {
				t.Errorf("the patch is not one new file:\n%s", d)
			}
			if digest(t, host) != before {
				t.Error("the host's repository was changed")
			}
			if a, err := c.Apply(t.Context(), "devbox", false); err != nil || len(a.Changed) != 1 || len(a.Conflicts) != 0 {
				t.Errorf("apply: %+v, %v", a, err)
			}
			if read(t, host, "fresh/new") != "new\n" {
				t.Error("the new file has not come")
			}
			if _, err := c.Export(t.Context(), "from-guest", "devbox", false); err != nil {
				t.Errorf("export: %v", err)
			}
			git(t, host, "fsck", "--strict")
		})
	}
}
