package gitsync

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// gitFile is a file of the guest's repository.
type gitFile struct {
	name    string // below the repository
	content []byte // unless it is that of a file of the host
	source  string
}

// pack makes the guest's repository in the stage: its objects as one pack, its references and its configuration.
func (p *part) pack(ctx context.Context) error {
	dir := filepath.Join(p.stage, "objects")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make a stage: %w", err)
	}
	wanted, err := p.wanted(ctx)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		return nil
	}
	// What is packed already goes as it is: no new deltas are looked for, the link is faster than that.
	c := p.call("pack-objects", "--revs", "--quiet", "--window=0", "--delta-base-offset", filepath.Join(dir, "pack"))
	c.stdin = strings.NewReader(strings.Join(wanted, "\n") + "\n")
	if err := git(ctx, c, nil); err != nil {
		return fmt.Errorf("pack the objects of %s: %w", p.top, err)
	}
	return nil
}

// wanted is what pack-objects is told to pack.
func (p *part) wanted(ctx context.Context) ([]string, error) {
	var wanted []string
	if p.head == "" {
		return blobs(p, func(indexEntry) bool { return true }), nil
	}
	shallow, err := p.shallow(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range shallow {
		wanted = append(wanted, "--shallow "+id)
	}
	wanted = append(wanted, p.head)
	tags, err := p.tags(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tags {
		wanted = append(wanted, t.id)
	}
	fields, err := gitFields(ctx, p.call("diff-index", "--cached", "--raw", "-z", "--no-abbrev", "--ignore-submodules=all", p.head))
	if err != nil {
		return nil, fmt.Errorf("compare the index of %s with HEAD: %w", p.top, err)
	}
	changed := map[string]bool{}
	for i := 1; i < len(fields); i += 2 {
		changed[fields[i]] = true
	}
	return append(wanted, blobs(p, func(e indexEntry) bool { return changed[e.path] })...), nil
}

// blobs returns the blobs of chosen entries of the index, if there are any: one of a submodule has none.
func blobs(p *part, chosen func(indexEntry) bool) []string {
	var ids []string
	for _, e := range p.entries {
		if _, there := p.sizes[e.id]; there && chosen(e) {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// shallow returns the commits whose parents the guest does not get.
func (p *part) shallow(ctx context.Context) ([]string, error) {
	if p.head == "" {
		return nil, nil
	}
	if !p.full {
		commit, err := gitText(ctx, p.call("cat-file", "commit", p.head))
		if err != nil {
			return nil, fmt.Errorf("read commit %s: %w", p.head, err)
		}
		header, _, _ := strings.Cut(commit, "\n\n")
		if strings.Contains(header, "\nparent ") {
			return []string{p.head}, nil
		}
		return nil, nil
	}
	list, err := os.ReadFile(filepath.Join(p.common, "shallow"))
	if err != nil {
		return nil, nil //nolint:nilerr // the host's repository has its whole history
	}
	history, err := gitText(ctx, p.call("rev-list", p.head))
	if err != nil {
		return nil, fmt.Errorf("read the history of %s: %w", p.top, err)
	}
	has := map[string]bool{}
	for id := range strings.SplitSeq(history, "\n") {
		has[id] = true
	}
	var ids []string
	for id := range strings.FieldsSeq(string(list)) {
		if has[id] {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

type ref struct{ id, name string }

// tags returns the tags within the history, if that is shipped.
func (p *part) tags(ctx context.Context) ([]ref, error) {
	if !p.full || p.head == "" {
		return nil, nil
	}
	text, err := gitText(ctx, p.call("for-each-ref", "--merged="+p.head, "--format=%(objectname) %(refname)", "refs/tags"))
	if err != nil {
		return nil, fmt.Errorf("list the tags of %s: %w", p.top, err)
	}
	var tags []ref
	for line := range strings.SplitSeq(text, "\n") {
		if id, name, ok := strings.Cut(line, " "); ok {
			tags = append(tags, ref{id, name})
		}
	}
	return tags, nil
}

// repository returns the files of the guest's repository.
func (p *part) repository(ctx context.Context) ([]gitFile, error) {
	var files []gitFile
	add := func(name, content string) { files = append(files, gitFile{name: name, content: []byte(content)}) }
	config, err := p.config(ctx)
	if err != nil {
		return nil, err
	}
	add("config", config)
	if p.branch == "" {
		add("HEAD", p.head+"\n")
	} else {
		add("HEAD", "ref: refs/heads/"+p.branch+"\n")
		if p.head != "" {
			add("refs/heads/"+p.branch, p.head+"\n")
		}
	}
	shallow, err := p.shallow(ctx)
	if err != nil {
		return nil, err
	}
	if len(shallow) > 0 {
		add("shallow", strings.Join(shallow, "\n")+"\n")
	}
	tags, err := p.tags(ctx)
	if err != nil {
		return nil, err
	}
	if len(tags) > 0 {
		var packed bytes.Buffer
		for _, t := range tags {
			packed.WriteString(t.id + " " + t.name + "\n")
		}
		add("packed-refs", packed.String())
	}
	packs, err := filepath.Glob(filepath.Join(escapeGlob(p.stage), "objects", "pack-*"))
	if err != nil {
		return nil, fmt.Errorf("look for packs: %w", err)
	}
	for _, f := range packs {
		files = append(files, gitFile{name: "objects/pack/" + filepath.Base(f), source: f})
	}
	for name, source := range map[string]string{
		"info/exclude":         filepath.Join(p.common, "info", "exclude"),
		"info/attributes":      filepath.Join(p.common, "info", "attributes"),
		"info/sparse-checkout": filepath.Join(p.gitDir, "info", "sparse-checkout"),
	} {
		if info, err := os.Stat(source); err == nil && info.Mode().IsRegular() {
			files = append(files, gitFile{name: name, source: source})
		}
	}
	large, err := p.largeFiles(ctx)
	return append(files, large...), err
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// config is the guest's configuration: what its files look like, and where they come from.
func (p *part) config(ctx context.Context) (string, error) {
	var b strings.Builder
	get := func(key string) string {
		value, err := gitText(ctx, p.call("config", "--get", key))
		if err != nil {
			return ""
		}
		return value
	}
	set := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "\t%s = %s\n", key, quoteAlways(value))
		}
	}
	format, err := gitText(ctx, p.call("rev-parse", "--show-object-format"))
	if err != nil {
		return "", fmt.Errorf("read the format of %s: %w", p.top, err)
	}
	b.WriteString("[core]\n\tbare = false\n\tlogAllRefUpdates = true\n")
	// The index knows the files by their inodes on the host; what the guest can compare is their time and size.
	b.WriteString("\tcheckStat = minimal\n\ttrustCtime = false\n")
	if p.at != "" {
		set("worktree", strings.Repeat("../", strings.Count(p.guestGit, "/")+1)+p.at)
	}
	for _, key := range []string{"fileMode", "autocrlf", "eol", "safecrlf", "sparseCheckout", "sparseCheckoutCone"} {
		set(key, get("core."+key))
	}
	if format == "sha256" {
		b.WriteString("\trepositoryFormatVersion = 1\n[extensions]\n\tobjectFormat = sha256\n")
	} else {
		b.WriteString("\trepositoryFormatVersion = 0\n")
	}
	if origin := withoutCredentials(get("remote.origin.url")); origin != "" {
		b.WriteString("[remote \"origin\"]\n")
		set("url", origin)
		set("fetch", "+refs/heads/*:refs/remotes/origin/*")
		if get("branch."+p.branch+".remote") == "origin" {
			fmt.Fprintf(&b, "[branch %s]\n", quoteAlways(p.branch)) // a reference has no newline in its name
			set("remote", "origin")
			set("merge", get("branch."+p.branch+".merge"))
		}
	}
	for _, in := range p.inner {
		name := strings.TrimPrefix(in.guestGit, p.guestGit+"/modules/")
		if strings.ContainsAny(name, "\n\r") {
			continue
		}
		fmt.Fprintf(&b, "[submodule %s]\n\tactive = true\n", quoteAlways(name))
		set("url", withoutCredentials(get("submodule."+name+".url")))
	}
	return b.String(), nil
}

// withoutCredentials returns a URL without password, and without a user where that is part of the credentials.
func withoutCredentials(remote string) string {
	if !strings.Contains(remote, "://") {
		return remote // a path, or host:path
	}
	u, err := url.Parse(remote)
	if err != nil {
		return ""
	}
	switch {
	case u.User == nil:
	case u.Scheme == "ssh":
		u.User = url.User(u.User.Username())
	default:
		u.User = nil
	}
	return u.String()
}

// largeFiles returns the objects of git-lfs that belong to files of the index, as far as the host has them
// (the pointer files' format: git-lfs, docs/spec.md).
func (p *part) largeFiles(ctx context.Context) ([]gitFile, error) {
	store := filepath.Join(p.common, "lfs", "objects")
	if _, err := os.Stat(store); err != nil {
		return nil, nil //nolint:nilerr // there are none
	}
	const mostOfPointer = 1024
	var ids strings.Builder
	for id, size := range p.sizes {
		if size > 0 && size < mostOfPointer {
			ids.WriteString(id + "\n")
		}
	}
	c := p.call("cat-file", "--batch")
	c.stdin = strings.NewReader(ids.String())
	text, err := gitText(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("read pointers of git-lfs: %w", err)
	}
	var files []gitFile
	const version, oid = "version https://git-lfs.github.com/spec/", "\noid sha256:"
	for _, pointer := range strings.Split(text, version)[1:] {
		_, rest, ok := strings.Cut(pointer, oid)
		if !ok || len(rest) < 64 || strings.Trim(rest[:64], "0123456789abcdef") != "" {
			continue
		}
		name := path.Join(rest[:2], rest[2:4], rest[:64])
		if _, err := os.Stat(filepath.Join(store, name)); err == nil {
			files = append(files, gitFile{name: "lfs/objects/" + name, source: filepath.Join(store, name)})
		}
	}
	return files, nil
}
