package archtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

const top = "../.."

func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// TestTree holds the module itself to every rule.
func TestTree(t *testing.T) {
	t.Parallel()
	tr, err := load(os.DirFS(top))
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.files) < 10 {
		t.Fatalf("only %d files found: this is not the whole tree", len(tr.files))
	}
	for name, problems := range map[string][]string{
		"table":     checkTable(table()),
		"imports":   checkImports(tr, table()),
		"processes": checkProcesses(tr, processStarters()),
		"sizes":     checkSizes(measure(tr), exceptions()),
		"names":     checkNames(tr),
		"globals":   checkGlobals(tr),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report(t, problems)
		})
	}
}

// TestGuest holds everything that ends up in the guest's binary, other modules included, to guestForbids.
func TestGuest(t *testing.T) {
	t.Parallel()
	const guest = "cmd/banger-guest"
	if _, err := os.Stat(filepath.Join(top, guest)); err != nil {
		t.Skipf("there is no %s: %v", guest, err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-e", "./"+guest)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	for _, bad := range checkForbidden(deps, guestForbids()) {
		t.Errorf("%s depends on %s, which is too large for the guest", guest, bad)
	}
}

// synthetic parses a made-up module.
func synthetic(t *testing.T, files map[string]string) tree {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	tr, err := load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// expect wants exactly the problems that hold the given parts, in order.
func expect(t *testing.T, problems []string, parts ...string) {
	t.Helper()
	if len(problems) != len(parts) {
		t.Fatalf("%d problems, want %d:\n%s", len(problems), len(parts), strings.Join(problems, "\n"))
	}
	for i, part := range parts {
		if !strings.Contains(problems[i], part) {
			t.Errorf("problem %q does not hold %q", problems[i], part)
		}
	}
}

func testTable() map[string]entry {
	return map[string]entry{
		"word":     {layer: vocabulary},
		"word2":    {layer: vocabulary, may: []string{"word"}},
		"mech":     {layer: mechanism, may: []string{"mech/sub"}},
		"mech/sub": {layer: mechanism},
		"gen":      {layer: mechanism},
		"svc":      {layer: service, may: []string{"mech"}},
		"svc2":     {layer: service},
		"boss":     {layer: root, may: []string{"svc", "gen"}},
	}
}

func TestImportRules(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, file string
		imports    string
		want       string // part of the problem; empty: allowed
	}{
		{"standard library", "internal/word/a.go", "os", ""},
		{"other module", "internal/word/a.go", "example.com/x", ""},
		{"everybody uses words", "internal/svc2/a.go", "banger/internal/word", ""},
		{"listed word", "internal/word2/a.go", "banger/internal/word", ""},
		{"unlisted word", "internal/word/a.go", "banger/internal/word2", "does not allow"},
		{"listed mechanism", "internal/svc/a.go", "banger/internal/mech", ""},
		{"listed subpackage", "internal/mech/a.go", "banger/internal/mech/sub", ""},
		{"subpackage is not its parent", "internal/svc/a.go", "banger/internal/mech/sub", "does not allow"},
		{"unlisted mechanism", "internal/svc2/a.go", "banger/internal/mech", "does not allow"},
		{"upwards", "internal/mech/a.go", "banger/internal/svc", "does not allow"},
		{"sibling", "internal/svc/a.go", "banger/internal/svc2", "does not allow"},
		{"generated", "internal/boss/a.go", "banger/internal/gen/x/v1", ""},
		{"generated, unlisted", "internal/svc/a.go", "banger/internal/gen/x/v1", "does not allow"},
		{"main imports a root", "cmd/x/a.go", "banger/internal/boss", ""},
		{"main imports a word", "cmd/x/a.go", "banger/internal/word", ""},
		{"main imports a service", "cmd/x/a.go", "banger/internal/svc", "commands import roots only"},
		{"unknown target", "cmd/x/a.go", "banger/internal/nope", "not in the table"},
		{"unlisted package", "internal/fresh/a.go", "os", "package internal/fresh is not in the import table: add it to"},
		{"tests are free", "internal/svc/a_test.go", "banger/internal/svc2", ""},
		{"build constraints do not hide", "internal/svc/a_windows.go", "banger/internal/svc2", "does not allow"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tr := synthetic(t, map[string]string{tc.file: fmt.Sprintf("package a\nimport _ %q\n", tc.imports)})
			if problems := checkImports(tr, testTable()); tc.want == "" {
				expect(t, problems)
			} else {
				expect(t, problems, tc.want)
			}
		})
	}
}

func TestTableRules(t *testing.T) {
	t.Parallel()
	expect(t, checkTable(testTable()))
	rules := testTable()
	rules["svc2"] = entry{layer: service, may: []string{"svc"}}
	rules["word"] = entry{layer: vocabulary, may: []string{"mech"}}
	rules["mech"] = entry{layer: mechanism, may: []string{"nope"}}
	rules["boss2"] = entry{layer: root, may: []string{"boss"}}
	expect(t, checkTable(rules),
		"boss2 may import boss: roots are imported by main only",
		"mech may import nope, which the table does not have",
		"svc2 may import svc: siblings are strangers",
		"word may import mech: imports point down",
	)
}

func TestProcessRules(t *testing.T) {
	t.Parallel()
	const imports = "package a\nimport _ \"os/exec\"\n"
	tr := synthetic(t, map[string]string{
		"internal/good/a.go":     imports,
		"internal/bad/a.go":      imports,
		"internal/bad/a_test.go": imports,
		"e2e/bench/a.go":         imports,
		"cmd/bad/a.go":           imports,
		"internal/sly/a.go":      "package a\nimport \"os\"\nvar _, _ = os.StartProcess(\"\", nil, nil)\n",
	})
	expect(t, checkProcesses(tr, []string{"good"}), "cmd/bad/a.go:2", "internal/bad/a.go:2", "internal/sly/a.go:3: os.StartProcess")
}

func TestForbiddenRules(t *testing.T) {
	t.Parallel()
	deps := []string{"net", "net/http", "net/http/internal", "net/httpx", "example.com/a"}
	expect(t, checkForbidden(deps, []string{"net/http"}), "net/http", "net/http/internal")
}

// repeat writes a numbered line n times.
func repeat(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format+"\n", i)
	}
	return b.String()
}

func TestSizeRules(t *testing.T) {
	t.Parallel()
	head := "package a\n"
	structOf := func(n int) string { return head + "type T struct {\n" + repeat(n, "F%d int") + "}\n" }
	funcOf := func(n int) string { return head + "func f() {\n" + repeat(n-2, "_ = %d") + "}\n" }
	interfaceOf := func(n int) string { return head + "type I interface {\n" + repeat(n, "M%d()") + "}\n" }
	methodsOf := func(n int) string { return head + "type G[T any] struct{}\n" + repeat(n, "func (*G[T]) M%d() {}") }
	for _, tc := range []struct {
		name, file, text string
		want             string
	}{
		{"file", "a/a.go", head + repeat(598, "// %d"), ""},
		{"long file", "a/a.go", head + repeat(599, "// %d"), "file a/a.go has 600 lines"},
		{"test file", "a/a_test.go", head + repeat(898, "// %d"), ""},
		{"long test file", "a/a_test.go", head + repeat(899, "// %d"), "file a/a_test.go has 900 lines"},
		{"func", "a/a.go", funcOf(79), ""},
		{"long func", "a/a.go", funcOf(80), "func a.f has 80 lines"},
		{"long func of a test", "a/a_test.go", funcOf(80), ""},
		{"struct", "a/a.go", structOf(15), ""},
		{"wide struct", "a/a.go", structOf(16), "struct a.T has 16 fields"},
		{"wide struct on one line", "a/a.go", head + "type T struct { A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P int }\n", "struct a.T has 16 fields"},
		{"wide local struct", "a/a.go", head + "func f() { type T struct { A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P int } }\n", "struct a.T has 16"},
		{"interface", "a/a.go", interfaceOf(7), ""},
		{"wide interface", "a/a.go", interfaceOf(8), "interface a.I has 8 methods"},
		{"methods", "a/a.go", methodsOf(24), ""},
		{"many methods", "a/a.go", methodsOf(25), "methods of a.G has 25 methods"},
		{"generated code is not measured", "internal/gen/a.go", structOf(16), ""},
		{"nor is another module", "tools/sub/a.go", structOf(16), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			problems := checkSizes(measure(synthetic(t, map[string]string{tc.file: tc.text, "tools/go.mod": "module x"})), nil)
			if tc.want == "" {
				expect(t, problems)
			} else {
				expect(t, problems, tc.want)
			}
		})
	}
}

func TestExceptionRules(t *testing.T) {
	t.Parallel()
	sizes := []size{{"func a", 90, 80, "lines"}, {"func b", 20, 80, "lines"}}
	expect(t, checkSizes(sizes, map[string]int{"func a": 90}))
	expect(t, checkSizes(sizes, map[string]int{"func a": 89}), "func a has grown to 90 lines; its exception says 89")
	expect(t, checkSizes(sizes, map[string]int{"func a": 91}), "func a has shrunk to 90 lines: lower its exception, which says 91")
	expect(t, checkSizes(sizes, map[string]int{"func a": 90, "func b": 85}), "func b has 20 lines and needs no exception any more")
	expect(t, checkSizes(sizes, map[string]int{"func a": 90, "func c": 85}), "there is no func c any more")
}

func TestNameRules(t *testing.T) {
	t.Parallel()
	expect(t, checkNames(synthetic(t, map[string]string{
		"internal/common/a.go": "package x\n",
		"internal/fine/a.go":   "package helpers\n",
		"internal/helper/a.go": "package helper\n",
	})), "internal/common: package common", "internal/fine: package helpers")
}

func TestGlobalRules(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		want       string
	}{
		{"init", "func init() {}", "func init"},
		{"method called init", "func (T) init() {}\ntype T int", ""},
		{"variable", "var x = 1", "var x"},
		{"variable in a group", "var (\n_ = 1\nx int\n)", "a.go:4: var x"},
		{"blank", "var _ = 1", ""},
		{"error", "var ErrX = errors.New(\"x\")", ""},
		{"unexported error", "var errX = fault.New(1, \"x\").WithHint(\"y\")", ""},
		{"not an error", "var errors = []int{}", "var errors"},
		{"not called an error", "var cache = lru.New()", "var cache"},
		{"regular expression", "var word = regexp.MustCompile(`a`)", ""},
		{"made like one", "var word = lru.MustCompile(`a`)", "var word"},
		{"embedded", "//go:embed x\nvar fs embed.FS", ""},
		{"embedded in a group", "var (\n//go:embed x\nfs embed.FS\n)", ""},
		{"marked", "var x = 1 //nolint:gochecknoglobals // a constant table", ""},
		{"marked for more", "var x = 1 //nolint:gochecknoglobals // a constant table", ""},
		{"marked as a group", "var ( //nolint:gochecknoglobals // not what the linter reads\nx = 1\n)", "a.go:3: var x"},
		{"marked for another linter", "var x = 1 // not gochecknoglobals", "var x"},
		{"local", "func f() { var x = 1; _ = x }", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			problems := checkGlobals(synthetic(t, map[string]string{"a.go": "package a\n" + tc.text + "\n", "a_test.go": "package a\nvar x = 1\n"}))
			if tc.want == "" {
				expect(t, problems)
			} else {
				expect(t, problems, tc.want)
			}
		})
	}
}

func TestLoadFailsOnBadSyntax(t *testing.T) {
	t.Parallel()
	if _, err := load(fstest.MapFS{"a.go": {Data: []byte("package")}}); err == nil {
		t.Error("a file that does not parse was accepted")
	}
}
