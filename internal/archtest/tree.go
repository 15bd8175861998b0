// Package archtest holds the shape of the program as a test: which package may import which ([table]), and how large
// files, functions, structs, types and interfaces may be. It reads source code and nothing else, and nothing imports it.
//
// It does not own style; that is the linter's.
package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// module is the path of the module whose tree is checked.
const module = "banger"

// tree is the parsed source of a module.
type tree struct {
	fset  *token.FileSet
	files []file // sorted by path
}

// file is one source file.
type file struct {
	path   string // from the top of the module
	syntax *ast.File
	lines  int
}

func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// dir is the folder of the file's package, from the top of the module.
func (f file) dir() string { return path.Dir(f.path) }

// pkg is the name by which the table knows the file's package, or empty if it is not under internal.
func (f file) pkg() string { return internalName(f.dir()) }

// internalName returns the table's name of a package from its path in the module.
func internalName(dir string) string {
	name, ok := strings.CutPrefix(dir, "internal/")
	if !ok {
		return ""
	}
	if name == generated || strings.HasPrefix(name, generated+"/") {
		return generated
	}
	return name
}

// load parses every Go file of the module at the top of fsys, whatever its build constraints. Generated code, testdata,
// hidden folders and modules of their own are left out.
func load(fsys fs.FS) (tree, error) {
	t := tree{fset: token.NewFileSet()}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if skipped(fsys, name) {
				return fs.SkipDir
			}
			return nil
		case path.Ext(name) != ".go":
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		syntax, err := parser.ParseFile(t.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		t.files = append(t.files, file{path: name, syntax: syntax, lines: bytes.Count(text, []byte("\n"))})
		return nil
	})
	if err != nil {
		return tree{}, fmt.Errorf("read source: %w", err)
	}
	return t, nil
}

func skipped(fsys fs.FS, dir string) bool {
	if dir == "." {
		return false
	}
	base := path.Base(dir)
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || dir == "internal/"+generated {
		return true
	}
	_, err := fs.Stat(fsys, path.Join(dir, "go.mod"))
	return err == nil
}

// code returns the files that are not tests.
func (t tree) code() []file {
	return slices.DeleteFunc(slices.Clone(t.files), file.isTest)
}

// at returns the place of a node for a message.
func (t tree) at(n ast.Node) string {
	p := t.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// sorted returns the messages of a set in order.
func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
