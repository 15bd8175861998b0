package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/fault"
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

// canonical returns a module's name from its name or path: the file's base without suffixes, with - and _ made equal, as
// the kernel does.
func canonical(name string) string {
	name = path.Base(name)
	for _, suffix := range []string{".gz", ".xz", ".zst", ".ko"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.ReplaceAll(name, "-", "_")
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
			e.deps = append(e.deps, canonical(dep))
		}
		if !filepath.IsLocal(file) || canonical(file) == "." {
			return fmt.Errorf("bad path %.100q", file)
		}
		out[canonical(file)] = e
		return nil
	})
	return out, err
}

func parseBuiltin(r io.Reader) (map[string]bool, error) {
	out := map[string]bool{}
	err := lines(r, func(line string) error { out[canonical(line)] = true; return nil })
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
				name := canonical(words[1])
				out[name] = append(out[name], canonical(w))
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
		if err := visit(canonical(name), "", true); err != nil {
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
