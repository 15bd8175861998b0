package kmod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Names of the indexes that Index makes. Those ending in .bin are what modprobe looks into.
const (
	depFile     = "modules.dep"
	aliasFile   = "modules.alias"
	softdepFile = "modules.softdep"
	devnameFile = "modules.devname"
	builtinFile = "modules.builtin" // read: the kernel's build makes it
)

// maxModules bounds the modules of a kernel; distributions have 4,000.
const maxModules = 50_000

// Index makes the indexes of the modules in a directory such as /lib/modules/<release>, over those that are there, and
// returns how many modules it has.
func Index(ctx context.Context, dir string) (int, error) {
	files, err := moduleFiles(dir)
	if err != nil {
		return 0, err
	}
	x := index{byName: map[string]*module{}}
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		content, err := Read(filepath.Join(dir, file))
		if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
			return 0, err
		}
		if err != nil {
			continue
		}
		m, err := parse(file, content)
		if err != nil || x.byName[m.name] != nil {
			continue
		}
		x.modules = append(x.modules, &m)
		x.byName[m.name] = &m
	}
	builtin, err := os.ReadFile(filepath.Join(dir, builtinFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for name, content := range x.files(string(builtin)) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil { // nothing secret
			return 0, fmt.Errorf("write index of modules: %w", err)
		}
	}
	return len(x.modules), nil
}

// moduleFiles returns the modules below a directory, relative to it and sorted.
func moduleFiles(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() || !IsModule(d.Name()) {
			return nil
		}
		file, err := filepath.Rel(dir, path)
		if err != nil || !plain(file) || strings.ContainsAny(file, " :") {
			return err // the indexes have no way to write such a name
		}
		if files = append(files, file); len(files) > maxModules {
			return errors.New("absurdly many modules")
		}
		return nil
	})
	slices.Sort(files)
	return files, err
}

type index struct {
	modules []*module // in the order of their paths
	byName  map[string]*module
}

// files returns the indexes by their names.
func (x *index) files(builtin string) map[string][]byte {
	var dep, alias, softdep, devname strings.Builder
	var depTrie, aliasTrie, builtinTrie trie
	alias.WriteString("# Aliases extracted from modules themselves.\n")
	softdep.WriteString("# Soft dependencies extracted from modules themselves.\n")
	devname.WriteString("# Device nodes to trigger on-demand module loading.\n")
	for i, m := range x.modules {
		words := []string{m.path + ":"}
		for _, d := range x.closure(m) {
			words = append(words, d.path)
		}
		line := strings.Join(words, " ")
		dep.WriteString(line + "\n")
		depTrie.insert(m.name, line, i)
		for _, a := range m.aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.name)
			aliasTrie.insert(underscores(a), m.name, i)
		}
		for _, s := range m.softdeps {
			fmt.Fprintf(&softdep, "softdep %s %s\n", m.name, s)
		}
		if line := deviceName(m); line != "" {
			devname.WriteString(line + "\n")
		}
	}
	for line := range strings.Lines(builtin) {
		if line = strings.TrimSpace(line); plain(line) {
			builtinTrie.insert(Canonical(line), "", 0)
		}
	}
	return map[string][]byte{
		depFile: []byte(dep.String()), depFile + ".bin": depTrie.encode(),
		aliasFile: []byte(alias.String()), aliasFile + ".bin": aliasTrie.encode(),
		softdepFile: []byte(softdep.String()), devnameFile: []byte(devname.String()),
		builtinFile + ".bin": builtinTrie.encode(),
	}
}

// closure returns all that a module needs, directly or not, such that each comes before what it needs itself: modprobe
// loads a line from its end. Modules that are not there are built in. A circle, which no kernel's build makes, is cut.
func (x *index) closure(m *module) []*module {
	var order []*module
	seen := map[*module]bool{m: true}
	var visit func(m *module)
	visit = func(m *module) {
		for _, name := range m.depends {
			if d := x.byName[name]; d != nil && !seen[d] {
				seen[d] = true
				visit(d)
				order = append(order, d)
			}
		}
	}
	visit(m)
	slices.Reverse(order)
	return order
}

// underscores makes - and _ equal, but for sets of characters in brackets.
func underscores(alias string) string {
	out := []byte(alias)
	inside := false
	for i, c := range out {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			out[i] = '_'
		}
	}
	return string(out)
}

// deviceName returns the line of modules.devname for a module that makes a device node when that is opened, such as
// "tun net/tun c10:200"; empty if there is none.
func deviceName(m *module) string {
	node, number := "", ""
	for _, a := range m.aliases {
		if name, ok := strings.CutPrefix(a, "devname:"); ok && filepath.IsLocal(name) {
			node = name
		}
		for prefix, kind := range map[string]string{"char-major-": "c", "block-major-": "b"} {
			rest, ok := strings.CutPrefix(a, prefix)
			var major, minor uint32
			if n, _ := fmt.Sscanf(rest, "%d-%d", &major, &minor); ok && n == 2 {
				number = fmt.Sprintf("%s%d:%d", kind, major, minor)
			}
		}
	}
	if node == "" || number == "" {
		return ""
	}
	return m.name + " " + node + " " + number
}
