package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/fault"
	"banger/internal/kmod"
)

// maxLine bounds a line of depmod's files, in bytes.
const maxLine = 256 << 10

// index is what depmod (kmod) wrote about the modules of one kernel. Its keys are canonical names.
type index struct {
	release string
	loads   map[string]entry    // modules.dep
	builtin map[string]bool     // modules.builtin
	before  map[string][]string // modules.softdep, "pre"
}

type entry struct {
	path string   // relative to the modules directory
	deps []string // canonical names of modules needed, in the order to load them
}

// readIndex reads depmod's files in dir. modules.dep must be there.
func readIndex(dir string) (*index, error) {
	x := &index{release: filepath.Base(dir)}
	read := func(name string, parse func(io.Reader) error) error {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // read only
		if err := parse(f); err != nil {
			return fault.New(fault.Corrupt, "read %s of kernel %s: %w", name, x.release, err)
		}
		return nil
	}
	optional := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	err := read("modules.dep", func(r io.Reader) (err error) { x.loads, err = parseDep(r); return err })
	if err != nil {
		return nil, err
	}
	err = read("modules.builtin", func(r io.Reader) (err error) { x.builtin, err = parseBuiltin(r); return err })
	if optional(err) != nil {
		return nil, err
	}
	err = read("modules.softdep", func(r io.Reader) (err error) { x.before, err = parseSoftdep(r); return err })
	return x, optional(err)
}

func lines(r io.Reader, each func(string) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := each(line); err != nil {
			return err
		}
	}
	return s.Err()
}

// parseDep reads modules.dep (depmod(8)): "path: dependency ...", the dependency to load first being the last.
func parseDep(r io.Reader) (map[string]entry, error) {
	out := map[string]entry{}
	err := lines(r, func(line string) error {
		file, rest, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("line without a colon: %.100q", line)
		}
		e := entry{path: file}
		for _, dep := range slices.Backward(strings.Fields(rest)) {
			e.deps = append(e.deps, kmod.Canonical(dep))
		}
		if !filepath.IsLocal(file) || kmod.Canonical(file) == "." {
			return fmt.Errorf("bad path %.100q", file)
		}
		out[kmod.Canonical(file)] = e
		return nil
	})
	return out, err
}

func parseBuiltin(r io.Reader) (map[string]bool, error) {
	out := map[string]bool{}
	err := lines(r, func(line string) error { out[kmod.Canonical(line)] = true; return nil })
	return out, err
}

// parseSoftdep reads modules.softdep: "softdep name pre: a b post: c". Only what goes before matters at boot.
func parseSoftdep(r io.Reader) (map[string][]string, error) {
	out := map[string][]string{}
	err := lines(r, func(line string) error {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "softdep" {
			return nil
		}
		pre := false
		for _, w := range words[2:] {
			switch {
			case strings.HasSuffix(w, ":"):
				pre = w == "pre:"
			case pre:
				name := kmod.Canonical(words[1])
				out[name] = append(out[name], kmod.Canonical(w))
			}
		}
		return nil
	})
	return out, err
}

// resolve returns the files to load, dependencies first. Names that are built in need none.
func (x *index) resolve(names []string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var visit func(name, wantedBy string, required bool) error
	visit = func(name, wantedBy string, required bool) error {
		if seen[name] {
			return nil
		}
		e, ok := x.loads[name]
		if !ok {
			if x.builtin[name] || !required {
				return nil
			}
			return fault.New(fault.Unsupported, "kernel %s has no module %s%s", x.release, name, wantedBy).
				WithHint("choose a kernel that has it as a module or built in")
		}
		seen[name] = true
		for _, pre := range x.before[name] {
			if err := visit(pre, "", false); err != nil {
				return err
			}
		}
		for _, dep := range e.deps {
			if err := visit(dep, ", which "+name+" needs", true); err != nil {
				return err
			}
		}
		order = append(order, e.path)
		return nil
	}
	for _, name := range names {
		if err := visit(kmod.Canonical(name), "", true); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Resolve returns the module files, as paths relative to modulesDir, that must be loaded for the modules named, in the
// order to load them. Modules built into the kernel need no file; one that doesn't exist is fault.Unsupported.
func Resolve(modulesDir string, modules []string) ([]string, error) {
	x, err := readIndex(modulesDir)
	if err != nil {
		return nil, fmt.Errorf("resolve modules: %w", err)
	}
	return x.resolve(modules)
}

// Have returns the canonical names of the modules that a directory as in Spec has as files, and of those that are built
// into its kernel.
func Have(modulesDir string) (loadable, builtin map[string]bool, err error) {
	x, err := readIndex(modulesDir)
	if err != nil {
		return nil, nil, fmt.Errorf("list modules: %w", err)
	}
	loadable = make(map[string]bool, len(x.loads))
	for name := range x.loads {
		loadable[name] = true
	}
	return loadable, x.builtin, nil
}
