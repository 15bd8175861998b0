package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path"
	"slices"
	"strings"
)

// size is how large one thing is, and how large it must not be.
type size struct {
	name  string // stable: without line numbers
	value int
	limit int
	unit  string
}

// checkSizes compares what there is with the limits and the exceptions from them.
func checkSizes(sizes []size, allowed map[string]int) []string {
	problems := map[string]bool{}
	used := map[string]bool{}
	for _, s := range sizes {
		exception, excepted := allowed[s.name]
		used[s.name] = true
		switch {
		case !excepted && s.value >= s.limit:
			problems[fmt.Sprintf("%s has %d %s; fewer than %d are allowed", s.name, s.value, s.unit, s.limit)] = true
		case excepted && s.value < s.limit:
			problems[fmt.Sprintf("%s has %d %s and needs no exception any more: remove it", s.name, s.value, s.unit)] = true
		case excepted && s.value > exception:
			problems[fmt.Sprintf("%s has grown to %d %s; its exception says %d", s.name, s.value, s.unit, exception)] = true
		case excepted && s.value < exception:
			problems[fmt.Sprintf("%s has shrunk to %d %s: lower its exception, which says %d", s.name, s.value, s.unit, exception)] = true
		}
	}
	for name := range allowed {
		if !used[name] {
			problems[fmt.Sprintf("there is no %s any more: remove its exception", name)] = true
		}
	}
	return sorted(problems)
}

// measure returns the size of everything that has a limit. Of tests it measures the files only.
func measure(t tree) []size {
	var sizes []size
	methods := map[string]int{}
	for _, f := range t.files {
		if f.isTest() {
			sizes = append(sizes, size{"file " + f.path, f.lines, maxTestFileLines, "lines"})
			continue
		}
		sizes = append(sizes, size{"file " + f.path, f.lines, maxFileLines, "lines"})
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				name := f.dir() + "." + n.Name.Name
				if n.Recv != nil {
					receiver := f.dir() + "." + receiverName(n.Recv.List[0].Type)
					methods[receiver]++
					name = receiver + "." + n.Name.Name
				}
				lines := t.fset.Position(n.End()).Line - t.fset.Position(n.Pos()).Line + 1
				sizes = append(sizes, size{"func " + name, lines, maxFuncLines, "lines"})
			case *ast.TypeSpec:
				sizes = append(sizes, measureType(f.dir()+"."+n.Name.Name, n.Type)...)
			}
			return true
		})
	}
	for _, name := range slices.Sorted(maps.Keys(methods)) {
		sizes = append(sizes, size{"methods of " + name, methods[name], maxMethods, "methods"})
	}
	return sizes
}

func measureType(name string, expr ast.Expr) []size {
	switch expr := expr.(type) {
	case *ast.StructType:
		return []size{{"struct " + name, count(expr.Fields), maxFields, "fields"}}
	case *ast.InterfaceType:
		return []size{{"interface " + name, count(expr.Methods), maxInterface, "methods"}}
	default:
		return nil
	}
}

// count counts the names of a list; what is embedded counts as one.
func count(list *ast.FieldList) int {
	n := 0
	for _, f := range list.List {
		n += max(1, len(f.Names))
	}
	return n
}

func receiverName(expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return receiverName(e.X)
	case *ast.IndexExpr:
		return receiverName(e.X)
	case *ast.IndexListExpr:
		return receiverName(e.X)
	case *ast.Ident:
		return e.Name
	default:
		return "?"
	}
}

// checkNames returns the packages whose name says nothing about what they own.
func checkNames(t tree) []string {
	problems := map[string]bool{}
	for _, f := range t.files {
		for _, name := range []string{path.Base(f.dir()), strings.TrimSuffix(f.syntax.Name.Name, "_test")} {
			switch name {
			case "util", "utils", "common", "helpers", "manager", "managers", "misc", "shared":
				problems[fmt.Sprintf("%s: package %s: name it after what it owns", f.dir(), name)] = true
			}
		}
	}
	return sorted(problems)
}

// checkGlobals returns init functions and variables of packages. Allowed are errors, regular expressions, embedded files,
// checks that a type has an interface (var _ I = T{}), and what a comment marks as constant for the linter:
// //nolint:gochecknoglobals.
func checkGlobals(t tree) []string {
	problems := map[string]bool{}
	for _, f := range t.code() {
		marked := markedLines(t, f)
		for _, decl := range f.syntax.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					problems[t.at(d)+": func init: what runs at start is called by main"] = true
				}
			case *ast.GenDecl:
				if d.Tok == token.VAR {
					addGlobals(problems, t, d, marked)
				}
			}
		}
	}
	return sorted(problems)
}

func addGlobals(problems map[string]bool, t tree, d *ast.GenDecl, marked map[int]bool) {
	line := func(n ast.Node) int { return t.fset.Position(n.Pos()).Line }
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok || isEmbed(d.Doc) || isEmbed(v.Doc) || marked[line(v)] {
			continue
		}
		for i, name := range v.Names {
			if name.Name != "_" && !(i < len(v.Values) && (isError(name.Name, v.Values[i]) || isRegexp(v.Values[i]))) {
				problems[fmt.Sprintf("%s: var %s: packages have no state; a constant table is marked //nolint:gochecknoglobals", t.at(name), name.Name)] = true
			}
		}
	}
}

// markedLines returns the lines that a //nolint:gochecknoglobals stands on.
func markedLines(t tree, f file) map[int]bool {
	marked := map[int]bool{}
	for _, group := range f.syntax.Comments {
		for _, c := range group.List {
			if rest, ok := strings.CutPrefix(c.Text, "//nolint:"); ok && strings.Contains(strings.Fields(rest + " ")[0], "gochecknoglobals") {
				marked[t.fset.Position(c.Pos()).Line] = true
			}
		}
	}
	return marked
}

func isEmbed(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// isRegexp reports whether a value is a regular expression compiled once.
func isRegexp(value ast.Expr) bool {
	call, ok := value.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "regexp" && sel.Sel.Name == "MustCompile"
}

// isError reports whether a variable is an error made once: it is called err... and comes from a constructor of errors.
func isError(name string, value ast.Expr) bool {
	call, ok := value.(*ast.CallExpr)
	if !ok || !strings.HasPrefix(strings.ToLower(name), "err") {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	switch sel.Sel.Name {
	case "New", "Errorf", "WithHint":
		return true
	}
	return false
}
