package gitsync

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"banger/internal/fault"
)

// maxNames bounds what the names of files take up in memory, in bytes.
const maxNames = 512 << 20

// incoming is an archive of a guest while it is read.
type incoming struct {
	c       *Changes
	shipped map[string]treeEntry
	files   map[string]treeEntry
	rules   map[string]treeEntry // the guest's .gitignore files
	nested  map[string]bool      // directories that are repositories of their own
	history *history
	names   int      // bytes of all names so far
	refused []string // paths that git forbids
	special []string // devices and the like
	notices []string
}

func newIncoming(c *Changes, shipped map[string]treeEntry) *incoming {
	return &incoming{
		c: c, shipped: shipped, files: map[string]treeEntry{}, rules: map[string]treeEntry{}, nested: map[string]bool{},
		history: newHistory(c),
	}
}

func (in *incoming) read(ctx context.Context, archive io.Reader) error {
	limits := in.c.limits
	r := tar.NewReader(&boundedReader{r: archive, left: limits.Archive})
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}
		if n >= limits.Entries {
			return fault.New(fault.Exhausted, "the workspace has more than %d files", limits.Entries)
		}
		if in.names += len(h.Name) + len(h.Linkname); in.names > maxNames {
			return fault.New(fault.Exhausted, "the names of the workspace's files have more than %d bytes", maxNames)
		}
		if err := in.entry(h, r); err != nil {
			return archiveError(err)
		}
	}
}

func archiveError(err error) error {
	kind := fault.KindOf(err)
	if kind == fault.Internal && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)) {
		kind = fault.Corrupt
	}
	return fault.New(kind, "read the guest's workspace: %w", err)
}

// entry takes one entry. The first component of its name is the workspace's own.
func (in *incoming) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	_, name, _ := strings.Cut(h.Name, "/")
	name = strings.TrimSuffix(name, "/")
	if name == "" {
		return nil
	}
	if name == ".git" || strings.HasPrefix(name, ".git/") {
		return in.history.entry(h, strings.TrimPrefix(name[len(".git"):], "/"), content)
	}
	if err := checkPath(name); err != nil {
		if dir, base := path.Split(name); base == ".git" && dir != "" {
			in.nested[strings.TrimSuffix(dir, "/")] = true
		} else if !strings.Contains(name, "/.git/") {
			in.refuse(name)
		}
		return nil
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	if in.isSubmodule(name) || isModules(name) {
		return nil
	}
	e, err := in.object(h, content)
	if err != nil {
		return fmt.Errorf("%s: %w", quotePath(name), err)
	}
	if e.id == "" {
		in.special = append(in.special, name)
		return nil
	}
	in.files[name] = e
	if path.Base(name) == ".gitignore" && e.mode != modeSymlink && h.Size <= small {
		in.rules[name] = e
	}
	return nil
}

// refuse remembers a path that git forbids, unless it remembers a directory above it.
func (in *incoming) refuse(name string) {
	for _, had := range in.refused {
		if strings.HasPrefix(name, had+"/") {
			return
		}
	}
	if len(in.refused) < maxNamed {
		in.refused = append(in.refused, name)
	}
}

// maxNamed bounds how many refused paths are remembered.
const maxNamed = 100

// object makes a blob of an entry. Without an id it is nothing that git keeps.
func (in *incoming) object(h *tar.Header, content io.Reader) (e treeEntry, err error) {
	switch h.Typeflag {
	case tar.TypeReg:
		if e.mode = modeFile; h.Mode&0o100 != 0 {
			e.mode = modeExecutable
		}
		e.id, err = in.c.q.add("blob", h.Size, content)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath {
			return e, fault.New(fault.Corrupt, "a symbolic link with a target of %d bytes", len(h.Linkname))
		}
		e.mode = modeSymlink
		e.id, err = in.c.q.add("blob", int64(len(h.Linkname)), strings.NewReader(h.Linkname))
	case tar.TypeLink:
		_, target, _ := strings.Cut(h.Linkname, "/")
		e = in.files[target] // nothing, if that was left out
	}
	return e, err
}

// isSubmodule reports whether a path is, or is in, a submodule of what was shipped.
func (in *incoming) isSubmodule(name string) bool { return in.below(name, in.submodule) }

func (in *incoming) submodule(dir string) bool { return in.shipped[dir].mode == modeSubmodule }

func (in *incoming) below(name string, is func(string) bool) bool {
	for ; name != "."; name = path.Dir(name) {
		if is(name) {
			return true
		}
	}
	return false
}

// result is what the working tree is, with what does not come from guests as it was shipped.
func (in *incoming) result() map[string]treeEntry {
	var nested, submodules []string
	for name := range in.files {
		if in.below(name, func(dir string) bool { return in.nested[dir] }) {
			delete(in.files, name)
		}
	}
	for dir := range in.nested {
		if !in.isSubmodule(dir) {
			nested = append(nested, dir)
		}
	}
	for name, e := range in.shipped {
		if e.mode == modeSubmodule {
			submodules = append(submodules, name)
		}
		if _, taken := in.files[name]; !taken && (e.mode == modeSubmodule || isModules(name) || in.inNested(name)) {
			in.files[name] = e
		}
	}
	in.tell("names that git forbids were left out", in.refused)
	in.tell("devices, sockets, pipes and links to them were left out", in.special)
	in.tell("repositories in the workspace were left out", nested)
	in.tell("submodules stay as they were shipped", submodules)
	in.dropClashes()
	return in.files
}

// inNested reports whether a shipped file lies where the guest has made a repository: it stays as it was.
func (in *incoming) inNested(name string) bool {
	return in.below(path.Dir(name), func(dir string) bool { return in.nested[dir] })
}

// dropClashes leaves out what is below a file: no file system has that, only a forged archive.
func (in *incoming) dropClashes() {
	for name := range in.files {
		if in.below(path.Dir(name), func(dir string) bool { _, file := in.files[dir]; return file }) {
			delete(in.files, name)
		}
	}
}

func (in *incoming) tell(what string, paths []string) {
	if len(paths) > 0 {
		in.notices = append(in.notices, what+": "+listed(paths))
	}
}
