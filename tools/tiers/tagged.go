package main

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// tagged returns the packages that have tests which are built only with a tag, and the names of those tests.
func tagged(fsys fs.FS, tag string) (packages, tests []string, err error) {
	dirs, names := map[string]bool{}, map[string]bool{}
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := path.Base(name); d.IsDir() {
			_, statErr := fs.Stat(fsys, path.Join(name, "go.mod"))
			if name != "." && (base == "testdata" || base[0] == '.' || base[0] == '_' || statErr == nil) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if !needs(file, tag) {
			return nil
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") && f.Name.Name != "TestMain" {
				dirs["./"+path.Dir(name)], names[f.Name.Name] = true, true
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look for tests: %w", err)
	}
	return slices.Sorted(maps.Keys(dirs)), slices.Sorted(maps.Keys(names)), nil
}

// needs reports whether a file is built with the tag and not without it.
func needs(file *ast.File, tag string) bool {
	for _, group := range file.Comments {
		for _, c := range group.List {
			if c.Pos() > file.Package || !constraint.IsGoBuild(c.Text) {
				continue
			}
			expr, err := constraint.Parse(c.Text)
			if err != nil {
				continue
			}
			with := func(on bool) bool {
				return expr.Eval(func(t string) bool { return t == "linux" || t == "amd64" || t == tag && on })
			}
			return with(true) && !with(false)
		}
	}
	return false
}
