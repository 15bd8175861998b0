package gitsync

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"banger/internal/fault"
)

// Bounds of a path, in bytes: those of Linux (NAME_MAX, PATH_MAX).
const (
	maxComponent = 255
	maxPath      = 4095
)

// checkPath refuses a path that must not become part of a git tree: one that leads elsewhere, one that no file system
// takes, and every spelling of .git that some file system takes for it.
func checkPath(path string) error {
	if path == "" || len(path) > maxPath {
		return refusePath(path, "its length")
	}
	if strings.IndexByte(path, 0) >= 0 {
		return refusePath(path, "a NUL")
	}
	for component := range strings.SplitSeq(path, "/") {
		switch {
		case component == "", component == ".", component == "..":
			return refusePath(path, fmt.Sprintf("the component %q", component))
		case len(component) > maxComponent:
			return refusePath(path, "the length of a component")
		case isDotGit(component):
			return refusePath(path, "a name that is taken for .git")
		}
	}
	return nil
}

func refusePath(path, why string) error {
	return fault.New(fault.Invalid, "the path %s is refused for %s", quotePath(path), why)
}

// quotePath makes a path of a guest fit for a message.
func quotePath(path string) string {
	if len(path) > 200 {
		path = path[:200] + "..."
	}
	return fmt.Sprintf("%q", path)
}

// isDotGit reports whether a file system could take a name for .git: one that ignores case, one of macOS, which ignores
// some characters (HFS+), or one of Windows, which knows short names, ignores dots and blanks at the end, has streams behind
// a colon, and splits at a backslash (path.c and utf8.c of git: is_ntfs_dotgit, is_hfs_dotgit).
func isDotGit(component string) bool {
	for part := range strings.SplitSeq(component, `\`) {
		part = strings.TrimLeft(withoutIgnorables(part), " ")
		if name, _, stream := strings.Cut(part, ":"); stream {
			part = name
		}
		switch strings.ToLower(strings.TrimRight(part, ". ")) {
		case ".git", "git~1":
			return true
		}
	}
	return false
}

// withoutIgnorables leaves out the code points that HFS+ ignores in names, and what is no UTF-8.
func withoutIgnorables(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff, r == utf8.RuneError:
			return -1
		}
		return r
	}, s)
}

// isModules reports whether a path is git's list of submodules, whose URLs must not come from a guest, in any spelling that
// a file system could take for it. The short names of Windows are those of path.c of git: is_ntfs_dotgitmodules.
func isModules(path string) bool {
	name := strings.ToLower(withoutIgnorables(path))
	name, _, _ = strings.Cut(name, ":")
	name = strings.TrimRight(name, ". ")
	return name == ".gitmodules" || strings.HasPrefix(name, "gitmod~") || strings.HasPrefix(name, "gi7eba~")
}
