package main

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestSummary(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		events string
		want   counts
		shown  []string // parts of what is printed
		hidden []string
	}{
		{
			"pass and skip",
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"output","Package":"p","Test":"A/x","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"B"}
{"Action":"output","Package":"p","Test":"B","Output":"=== RUN   B\n"}
{"Action":"output","Package":"p","Test":"B","Output":"    b_test.go:7: no QEMU: here\n"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"pass","Package":"p","Elapsed":1.25}
`,
			counts{1, 0, 1},
			[]string{"SKIP p B: no QEMU: here\n", "ok   p: 1 passed, 0 failed, 1 skipped (1.2 s)"},
			[]string{"noise"},
		},
		{
			"failing subtest counts once",
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"output","Package":"p","Test":"A/x","Output":"broken\n"}
{"Action":"fail","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}
`,
			counts{0, 1, 0},
			[]string{"FAIL p\nbroken\n"},
			nil,
		},
		{
			"parent fails by itself",
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"run","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}
`,
			counts{1, 1, 0},
			nil, nil,
		},
		{
			"does not build",
			`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:1: undefined\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}
`,
			counts{0, 1, 0},
			[]string{"p.go:1: undefined"},
			nil,
		},
		{
			"dies in a test",
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"A","Output":"panic: x\n"}
{"Action":"fail","Package":"p"}
`,
			counts{0, 1, 0},
			[]string{"panic: x"},
			nil,
		},
		{
			"output ends early",
			`{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
`,
			counts{1, 1, 0},
			[]string{"FAIL p"},
			nil,
		},
		{"not an event", "go: cannot find module\n", counts{}, []string{"go: cannot find module"}, nil},
		{"no tests", `{"Action":"skip","Package":"p"}`, counts{}, nil, []string{"p"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			if got := newSummary(&out).read(strings.NewReader(tc.events)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			for _, part := range tc.shown {
				if !strings.Contains(out.String(), part) {
					t.Errorf("not shown: %q in\n%s", part, out.String())
				}
			}
			for _, part := range tc.hidden {
				if strings.Contains(out.String(), part) {
					t.Errorf("shown: %q in\n%s", part, out.String())
				}
			}
		})
	}
}

func TestTagged(t *testing.T) {
	t.Parallel()
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	fsys := fstest.MapFS{
		"a/a_test.go":          file("package a\nfunc TestPlain() {}\n"),
		"a/vm_test.go":         file("//go:build vm\n\npackage a\nfunc TestBoot() {}\nfunc TestMain() {}\nfunc other() {}\n"),
		"b/vm_test.go":         file("//go:build linux && vm\n\npackage b\nfunc TestRun() {}\n"),
		"c/not_test.go":        file("//go:build !vm\n\npackage c\nfunc TestNot() {}\n"),
		"c/host_test.go":       file("//go:build host\n\npackage c\nfunc TestHost() {}\n"),
		"c/code.go":            file("//go:build vm\n\npackage c\nfunc TestInCode() {}\n"),
		"d/testdata/x_test.go": file("//go:build vm\n\npackage d\nfunc TestData() {}\n"),
		"tools/go.mod":         file("module x\n"),
		"tools/x_test.go":      file("//go:build vm\n\npackage e\nfunc TestTools() {}\n"),
	}
	packages, tests, err := tagged(fsys, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"./a", "./b"}; !slices.Equal(packages, want) {
		t.Errorf("packages %q, want %q", packages, want)
	}
	if want := []string{"TestBoot", "TestRun"}; !slices.Equal(tests, want) {
		t.Errorf("tests %q, want %q", tests, want)
	}
}
