package archtest

import (
	"fmt"
	"go/ast"
	"slices"
	"strconv"
	"strings"
)

// checkTable returns what is wrong with the table itself: entries that the layers forbid.
func checkTable(rules map[string]entry) []string {
	problems := map[string]bool{}
	for name, rule := range rules {
		for _, to := range rule.may {
			target, ok := rules[to]
			switch {
			case !ok:
				problems[fmt.Sprintf("%s may import %s, which the table does not have", name, to)] = true
			case target.layer == root:
				problems[fmt.Sprintf("%s may import %s: roots are imported by main only", name, to)] = true
			case target.layer > rule.layer:
				problems[fmt.Sprintf("%s may import %s: imports point down", name, to)] = true
			case target.layer == rule.layer && rule.layer >= service:
				problems[fmt.Sprintf("%s may import %s: siblings are strangers", name, to)] = true
			}
		}
	}
	return sorted(problems)
}

// checkImports returns every import inside the module that the table does not allow.
func checkImports(t tree, rules map[string]entry) []string {
	problems := map[string]bool{}
	for _, f := range t.code() {
		from := f.pkg()
		if _, ok := rules[from]; !ok && from != "" {
			problems[fmt.Sprintf("package internal/%s is not in the import table: add it to internal/archtest/table.go", from)] = true
			continue
		}
		for _, spec := range f.syntax.Imports {
			dir, ok := strings.CutPrefix(importPath(spec), module+"/")
			if !ok {
				continue
			}
			if why := judge(rules, f.dir(), dir); why != "" {
				problems[fmt.Sprintf("%s: %s imports %s: %s", t.at(spec), f.dir(), dir, why)] = true
			}
		}
	}
	return sorted(problems)
}

// judge returns why the package in folder from may not import the one in folder to, or nothing.
func judge(rules map[string]entry, from, to string) string {
	target, ok := rules[internalName(to)]
	if !ok {
		return "the target is not in the table of internal/archtest/table.go"
	}
	if name := internalName(from); name != "" {
		rule := rules[name]
		if target.layer == vocabulary && rule.layer != vocabulary || slices.Contains(rule.may, internalName(to)) {
			return ""
		}
		return "the table of internal/archtest/table.go does not allow it"
	}
	if strings.HasPrefix(from, "cmd/") && target.layer != root && target.layer != vocabulary {
		return "commands import roots only"
	}
	return ""
}

// checkProcesses returns the places that start processes in packages of the product that may not.
func checkProcesses(t tree, allowed []string) []string {
	problems := map[string]bool{}
	for _, f := range t.code() {
		product := f.pkg() != "" || strings.HasPrefix(f.path, "cmd/") // what is elsewhere, such as e2e, tests the product
		if !product || slices.Contains(allowed, f.pkg()) {
			continue
		}
		for _, spec := range f.syntax.Imports {
			if importPath(spec) == "os/exec" {
				problems[fmt.Sprintf("%s: %s imports os/exec: start processes through internal/hostexec", t.at(spec), f.dir())] = true
			}
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch x.Name + "." + sel.Sel.Name {
			case "os.StartProcess", "syscall.ForkExec", "syscall.StartProcess":
				problems[fmt.Sprintf("%s: %s.%s: start processes through internal/hostexec", t.at(sel), x.Name, sel.Sel.Name)] = true
			}
			return true
		})
	}
	return sorted(problems)
}

// checkForbidden returns the packages among deps that are, or are under, a forbidden one.
func checkForbidden(deps, forbidden []string) []string {
	problems := map[string]bool{}
	for _, dep := range deps {
		for _, bad := range forbidden {
			if dep == bad || strings.HasPrefix(dep, bad+"/") {
				problems[dep] = true
			}
		}
	}
	return sorted(problems)
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return "" // the parser has accepted it, so this does not happen
	}
	return p
}
