package gitsync

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"

	"banger/internal/hostexec"
)

// dropIgnored leaves out files that were neither shipped nor committed in the guest and that are ignored: by the rules that
// were shipped, by the guest's, or by what the host's repository and user ignore everywhere. Git evaluates the rules, in a
// directory that holds nothing but them.
func (in *incoming) dropIgnored(ctx context.Context, tracked map[string]bool) error {
	var candidates bytes.Buffer
	for name := range in.files {
		if _, ok := in.shipped[name]; !ok && !tracked[name] {
			candidates.WriteString(topMagic + name + "\x00")
		}
	}
	if candidates.Len() == 0 {
		return nil
	}
	shipped := map[string]treeEntry{}
	for name, e := range in.shipped {
		if path.Base(name) == ".gitignore" && e.mode != modeSymlink {
			shipped[name] = e
		}
	}
	exclude, err := in.c.hostExcludes(ctx)
	if err != nil {
		return err
	}
	sets := []map[string]treeEntry{shipped}
	if !maps.Equal(shipped, in.rules) {
		sets = append(sets, in.rules)
	}
	for i, rules := range sets {
		dir := filepath.Join(in.c.dir, fmt.Sprintf("rules%d", i))
		if err := in.c.q.unpack(ctx, dir, rules); err != nil {
			return err
		}
		c := in.c.q.call("check-ignore", "--no-index", "-z", "--stdin")
		c.env = []string{"GIT_WORK_TREE=" + dir, "GIT_LITERAL_PATHSPECS=0"} // check-ignore refuses them
		c.dir, c.stdin, c.config = dir, bytes.NewReader(candidates.Bytes()), []string{"core.excludesFile=" + exclude}
		ignored, err := gitFields(ctx, c)
		if err != nil && hostexec.ExitCode(err) != 1 { // 1: none is ignored
			return fmt.Errorf("find ignored files: %w", err)
		}
		for _, name := range ignored {
			delete(in.files, strings.TrimPrefix(name, topMagic))
		}
	}
	return nil
}

// topMagic before a path keeps a colon at its beginning from meaning anything (gitglossary(7), pathspec).
const topMagic = ":(top)"

// unpack writes blobs as plain files below dir.
func (q *quarantine) unpack(ctx context.Context, dir string, entries map[string]treeEntry) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("unpack rules: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack rules: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing is buffered
	for name, e := range entries {
		content, err := q.blob(ctx, e.id)
		if err != nil {
			return err
		}
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return fmt.Errorf("unpack rules: %w", err)
		}
		if err := root.WriteFile(name, content, 0o600); err != nil {
			return fmt.Errorf("unpack rules: %w", err)
		}
	}
	return nil
}

// blob returns the content of a blob.
func (q *quarantine) blob(ctx context.Context, id string) ([]byte, error) {
	var out bytes.Buffer
	if err := git(ctx, q.call("cat-file", "blob", id), &boundedWriter{w: &out, left: q.limit}); err != nil {
		return nil, fmt.Errorf("read object %s: %w", id, err)
	}
	return out.Bytes(), nil
}

// hostExcludes returns a file with what the host's user and repository ignore besides .gitignore files.
func (c *Changes) hostExcludes(ctx context.Context) (string, error) {
	if c.base.Host == "" {
		return os.DevNull, nil
	}
	var all bytes.Buffer
	file, err := gitText(ctx, call{dir: c.base.Host, args: []string{"config", "--type=path", "--get", "core.excludesFile"}})
	if err != nil || file == "" {
		config := os.Getenv("XDG_CONFIG_HOME")
		if config == "" {
			config = filepath.Join(os.Getenv("HOME"), ".config")
		}
		file = filepath.Join(config, "git", "ignore") // gitignore(5)
	}
	own, err := gitText(ctx, call{dir: c.base.Host, args: []string{"rev-parse", "--path-format=absolute", "--git-path", "info/exclude"}})
	if err != nil {
		own = "" // the repository is gone: its rules are, too
	}
	for _, f := range []string{file, own} {
		if content, err := os.ReadFile(f); err == nil { // what can't be read ignores nothing
			all.WriteString(strings.TrimSuffix(string(content), "\n") + "\n")
		}
	}
	merged := filepath.Join(c.dir, "exclude")
	if err := os.WriteFile(merged, all.Bytes(), 0o600); err != nil {
		return "", fmt.Errorf("find ignored files: %w", err)
	}
	return merged, nil
}
