package gitsync

import (
	"bytes"
	"crypto/sha1"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzPaths(f *testing.F) {
	for _, seed := range []string{"a/b", ".git", "a/.GIT", "git~1", "../x", "a//b", ".git::$DATA", ".g\u200cit", "a\\.git\\b", ". git", "\xff.git"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if checkPath(path) != nil {
			return
		}
		if !filepath.IsLocal(path) || filepath.Clean(path) != path {
			t.Errorf("%q leads elsewhere", path)
		}
		for c := range strings.SplitSeq(strings.ToLower(path), "/") {
			if c == ".git" || c == "git~1" {
				t.Errorf("%q has a name of git's", path)
			}
		}
	})
}

func FuzzPack(f *testing.F) {
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00"))
	f.Add([]byte("PACK\x00\x00\x00\x02\xff\xff\xff\xff\xb0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	if pack := realPack(f); pack != nil {
		f.Add(pack)
	}
	f.Fuzz(func(t *testing.T, pack []byte) {
		const most = 1 << 20
		if total, err := scanPack(bytes.NewReader(pack), 20, most, most); err == nil && (total < 0 || total > most) {
			t.Errorf("%d bytes pass a limit of %d", total, most)
		}
	})
}

func FuzzRefs(f *testing.F) {
	f.Add("# pack-refs with: peeled\n0123 refs/heads/main\n^4567\n", "ref: refs/heads/main")
	f.Fuzz(func(t *testing.T, packed, head string) {
		q := &quarantine{hash: sha1.New}
		h := &history{q: q, head: head, refs: parsePackedRefs(packed)}
		if id, err := h.commit(); err == nil && id != "" && !q.isID(id) {
			t.Errorf("%q is taken for a commit", id)
		}
	})
}

func FuzzLooseHeader(f *testing.F) {
	f.Add([]byte("blob 12\x00hello"))
	f.Add([]byte("commit 99999999999999999999\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, size, err := parseLooseHeader(bytes.NewReader(raw)); err == nil && size < 0 {
			t.Errorf("size %d", size)
		}
	})
}

// realPack is a pack with deltas, if git is there to make it.
func realPack(f *testing.F) []byte {
	f.Helper()
	dir := f.TempDir()
	run := func(args ...string) ([]byte, error) {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a")
		cmd.Stdin = strings.NewReader("HEAD\n")
		return cmd.Output()
	}
	_, _ = run("init", "-q")
	for i := range 3 {
		content := strings.Repeat("a line that is long enough\n", 50) + strings.Repeat("x", i)
		_ = os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o600)
		_, _ = run("add", "file")
		_, _ = run("commit", "-q", "-m", "c")
	}
	pack, err := run("pack-objects", "--revs", "--stdout", "-q")
	if err != nil {
		return nil
	}
	if total, err := scanPack(bytes.NewReader(pack), 20, 1<<20, 1<<20); err != nil || total < 3000 {
		f.Fatalf("a pack of git's: %d bytes, %v", total, err)
	}
	return pack
}
