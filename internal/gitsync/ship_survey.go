package gitsync

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/fault"
)

// indexEntry is one path of the index; one with a conflict has several.
type indexEntry struct {
	path  string
	mode  string
	id    string
	stage string
}

// survey lists what is shipped.
func (p *part) survey(ctx context.Context, src Source, notice func(string, ...any)) error {
	if err := p.normaliseIndex(ctx); err != nil {
		return err
	}
	changed, err := p.readIndex(ctx)
	if err != nil {
		return err
	}
	if p.sizes, err = p.blobSizes(ctx); err != nil {
		return err
	}
	look := lookout{root: p.root, dirs: map[string]bool{}}
	last := ""
	for _, e := range p.entries {
		if e.path == last {
			continue // another stage of the same conflict
		}
		last = e.path
		if e.mode == modeSubmodule {
			if err := p.submodule(ctx, e, src, notice); err != nil {
				return err
			}
			continue
		}
		f, ok, err := look.at(e.path)
		if err != nil {
			return err
		}
		if !ok {
			continue // deleted, or not in a sparse checkout
		}
		if !changed[e.path] && e.stage == "0" {
			f.same = e.id
			if size, known := p.sizes[e.id]; known && size == f.size {
				f.clean = e.id // else a filter made something else of it
			}
		}
		p.files = append(p.files, f)
	}
	return p.untracked(ctx, src.Untracked && p.root == p.top, &look, notice)
}

// readIndex reads the entries, and returns the paths that are not in the working tree as they are in the index.
func (p *part) readIndex(ctx context.Context) (changed map[string]bool, err error) {
	fields, err := gitFields(ctx, p.call("ls-files", "--stage", "-z"))
	if err != nil {
		return nil, fmt.Errorf("read the index of %s: %w", p.top, err)
	}
	p.entries = make([]indexEntry, 0, len(fields))
	for _, f := range fields {
		meta, path, ok := strings.Cut(f, "\t")
		parts := strings.Fields(meta)
		if !ok || len(parts) != 3 {
			return nil, fault.New(fault.Corrupt, "read the index of %s: %q", p.top, f)
		}
		p.entries = append(p.entries, indexEntry{path: path, mode: parts[0], id: parts[1], stage: parts[2]})
	}
	fields, err = gitFields(ctx, p.call("diff-files", "--raw", "-z", "--ignore-submodules=all"))
	if err != nil {
		return nil, fmt.Errorf("compare the index with the files of %s: %w", p.top, err)
	}
	changed = map[string]bool{}
	for i := 1; i < len(fields); i += 2 {
		changed[fields[i]] = true
	}
	return changed, nil
}

// blobSizes returns how large the blobs of the index are. Those that are missing, as an intent to add has one, are left out.
func (p *part) blobSizes(ctx context.Context) (map[string]int64, error) {
	var ids bytes.Buffer
	seen := map[string]bool{}
	for _, e := range p.entries {
		if e.mode != modeSubmodule && !seen[e.id] {
			seen[e.id] = true
			ids.WriteString(e.id + "\n")
		}
	}
	c := p.call("cat-file", "--batch-check=%(objectname) %(objectsize)")
	c.stdin = &ids
	text, err := gitText(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("look at the objects of %s: %w", p.top, err)
	}
	sizes := make(map[string]int64, len(seen))
	for line := range strings.SplitSeq(text, "\n") {
		id, size, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseInt(size, 10, 64); err == nil {
			sizes[id] = n
		}
	}
	return sizes, nil
}

// untracked adds, or counts, the files that git does not track and does not ignore.
func (p *part) untracked(ctx context.Context, take bool, look *lookout, notice func(string, ...any)) error {
	// Of the host's working tree, whatever commit goes.
	c := p.call("ls-files", "--others", "--exclude-standard", "-z")
	if p.root != p.top {
		c = call{dir: p.top, args: c.args}
	}
	paths, err := gitFields(ctx, c)
	if err != nil {
		return fmt.Errorf("look for untracked files in %s: %w", p.top, err)
	}
	name := "the repository"
	if p.at != "" {
		name = "the submodule " + p.at
	}
	left := 0
	for _, path := range paths {
		switch {
		case strings.HasSuffix(path, "/"):
			notice("%s is a git repository of its own and stays behind", quotePath(join(p.at, path)))
		case !take:
			left++
		default:
			f, ok, err := look.at(path)
			if err != nil {
				return err
			}
			if ok {
				p.files = append(p.files, f)
			}
		}
	}
	switch {
	case left > 0 && p.root != p.top:
		notice("%d untracked files of %s stay behind", left, name)
	case left == 1:
		notice("1 untracked file of %s stays behind; --include-untracked takes it", name)
	case left > 1:
		notice("%d untracked files of %s stay behind; --include-untracked takes them", left, name)
	}
	return nil
}

// lookout looks at files below a directory without following symbolic links in their paths: git does not, either.
type lookout struct {
	root string
	dirs map[string]bool // whether a path is a directory
}

// at returns a file or symbolic link; not ok if there is none.
func (l *lookout) at(path string) (f file, ok bool, err error) {
	if dir := filepath.Dir(path); !l.isDir(dir) {
		return file{}, false, nil
	}
	info, err := os.Lstat(filepath.Join(l.root, path))
	if err != nil {
		if os.IsNotExist(err) {
			return file{}, false, nil
		}
		return file{}, false, fmt.Errorf("look at a file: %w", err)
	}
	if typ := info.Mode().Type(); typ != 0 && typ != fs.ModeSymlink {
		return file{}, false, nil // git sees nothing there, either
	}
	return file{path: path, size: info.Size(), mode: info.Mode(), mtime: info.ModTime()}, true, nil
}

func (l *lookout) isDir(dir string) bool {
	if dir == "." {
		return true
	}
	is, known := l.dirs[dir]
	if !known {
		if l.isDir(filepath.Dir(dir)) {
			info, err := os.Lstat(filepath.Join(l.root, dir))
			is = err == nil && info.IsDir()
		}
		l.dirs[dir] = is
	}
	return is
}

// maxDepth bounds how deep submodules may lie in submodules.
const maxDepth = 16

// submodule adds a submodule, if it is checked out.
func (p *part) submodule(ctx context.Context, e indexEntry, src Source, notice func(string, ...any)) error {
	at, dir := join(p.at, e.path), filepath.Join(p.root, e.path)
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err != nil || p.root != p.top {
		notice("the submodule %s is not checked out and stays empty", quotePath(at))
		return nil
	}
	if strings.Count(p.stage, "/sub-") > maxDepth {
		return fault.New(fault.Exhausted, "submodules lie more than %d deep in one another", maxDepth)
	}
	in, err := openPart(ctx, dir, filepath.Join(p.stage, "sub-"+strconv.Itoa(len(p.inner))))
	if err != nil {
		return fmt.Errorf("open the submodule %s: %w", quotePath(at), err)
	}
	in.at, in.full = at, p.full
	in.guestGit = p.guestGit + "/modules/" + moduleName(ctx, p, e.path)
	if err := os.Mkdir(in.stage, 0o700); err != nil {
		return fmt.Errorf("make a stage: %w", err)
	}
	if err := in.copyIndex(); err != nil {
		return err
	}
	p.inner = append(p.inner, in)
	return in.survey(ctx, Source{Full: src.Full, Untracked: src.Untracked}, notice)
}

// moduleName returns what .gitmodules calls a submodule; its path if it does not say, or says what must not be part of a path.
func moduleName(ctx context.Context, p *part, path string) string {
	c := p.call("config", "--file", ".gitmodules", "--null", "--get-regexp", `^submodule\..*\.path$`)
	fields, err := gitFields(ctx, c)
	if err != nil {
		return path
	}
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "\n")
		name := strings.TrimSuffix(strings.TrimPrefix(key, "submodule."), ".path")
		if value == path && filepath.IsLocal(name) && filepath.Clean(name) == name {
			return name
		}
	}
	return path
}

// trees makes, in a quarantine, the tree that git would make of the working tree, and the tree of its very bytes. Entries that
// are in a conflict count as they are in the working tree.
func (p *part) trees(ctx context.Context, q *quarantine) (tree, exact string, err error) {
	present := make(map[string]bool, len(p.files))
	normal, raw := make(map[string]treeEntry, len(p.files)), make(map[string]treeEntry, len(p.files))
	var changed []file
	for _, f := range p.files {
		present[f.path] = true
		e := treeEntry{mode: modeOf(f), id: f.clean}
		if e.id == "" {
			if e.id, err = addBlob(q, p.root, f); err != nil {
				return "", "", err
			}
		}
		raw[f.path], normal[f.path] = e, e
		if f.same != "" {
			normal[f.path] = treeEntry{mode: e.mode, id: f.same}
		} else if f.mode.IsRegular() {
			changed = append(changed, f)
		}
	}
	if err := p.addFiltered(ctx, q, changed, normal); err != nil {
		return "", "", err
	}
	skipped, err := p.skipped(ctx)
	if err != nil {
		return "", "", err
	}
	for _, e := range p.entries {
		switch {
		case e.mode == modeSubmodule && e.stage == "0":
			raw[e.path], normal[e.path] = treeEntry{e.mode, e.id}, treeEntry{e.mode, e.id}
		case skipped[e.path] && !present[e.path]:
			normal[e.path] = treeEntry{e.mode, e.id}
		}
	}
	if exact, err = q.writeTree(ctx, raw); err != nil {
		return "", "", err
	}
	if maps.Equal(raw, normal) {
		return exact, exact, nil
	}
	tree, err = q.writeTree(ctx, normal)
	return tree, exact, err
}

func modeOf(f file) string {
	switch {
	case f.mode&fs.ModeSymlink != 0:
		return modeSymlink
	case f.mode&0o100 != 0:
		return modeExecutable
	}
	return modeFile
}

// addBlob stores a file as it is.
func addBlob(q *quarantine, root string, f file) (string, error) {
	path := filepath.Join(root, f.path)
	if f.mode&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		if err != nil {
			return "", fmt.Errorf("read a symbolic link: %w", err)
		}
		return q.add("blob", int64(len(target)), strings.NewReader(target))
	}
	in, err := openFile(path)
	if err != nil {
		return "", err
	}
	defer in.Close() //nolint:errcheck // only read
	id, err := q.add("blob", f.size, in)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", quotePath(f.path), err)
	}
	return id, nil
}

// addFiltered stores files as git would, with the filters that its attributes ask for.
func (p *part) addFiltered(ctx context.Context, q *quarantine, files []file, to map[string]treeEntry) error {
	if len(files) == 0 {
		return nil
	}
	var paths bytes.Buffer
	for _, f := range files {
		paths.WriteString(quoteAlways(f.path) + "\n")
	}
	c := p.call("hash-object", "-w", "--stdin-paths")
	c.stdin = bytes.NewReader(paths.Bytes())
	c.env = append(c.env, "GIT_OBJECT_DIRECTORY="+filepath.Join(q.dir, "objects"),
		"GIT_ALTERNATE_OBJECT_DIRECTORIES="+quoteAlways(filepath.Join(p.common, "objects")))
	text, err := gitText(ctx, c)
	if err != nil {
		return fmt.Errorf("read changed files as git would: %w", err)
	}
	ids := strings.Split(text, "\n")
	if len(ids) != len(files) {
		return fmt.Errorf("read changed files as git would: %d answers for %d files", len(ids), len(files))
	}
	for i, f := range files {
		to[f.path] = treeEntry{mode: modeOf(f), id: ids[i]}
	}
	return nil
}

// skipped returns the paths that a sparse checkout leaves out.
func (p *part) skipped(ctx context.Context) (map[string]bool, error) {
	fields, err := gitFields(ctx, p.call("ls-files", "-t", "-z"))
	if err != nil {
		return nil, fmt.Errorf("read the index of %s: %w", p.top, err)
	}
	skipped := map[string]bool{}
	for _, f := range fields {
		if path, ok := strings.CutPrefix(f, "S "); ok {
			skipped[path] = true
		}
	}
	return skipped, nil
}

// quoteAlways quotes a path as in C.
func quoteAlways(path string) string {
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(path) + `"`
}
