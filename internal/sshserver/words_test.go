package sshserver

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestSplitWords(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]string{
		"":                          nil,
		"  \t ":                     nil,
		"a  b\tc":                   {"a", "b", "c"},
		`'a b'"c d"e\ f`:            {"a bc de f"},
		`"" ''`:                     {"", ""},
		`"\$\a\"\\" '\'`:            {`$\a"\`, `\`},
		"ls -l --color=never a~ b#": {"ls", "-l", "--color=never", "a~", "b#"},
	} {
		if got, err := splitWords(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	for _, line := range []string{
		"a|b", "a;b", "a&", "a>b", "<a", "(a)", "$a", `"$a"`, "`a`", "a\nb", "a*", "?", "[a]", "~/a", "# a", "A=b c", "{a,b}", "! a", `a\`, "a \\\nb",
	} {
		if got, err := splitWords(line); !errors.Is(err, errNeedsShell) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	for _, line := range []string{"'a", `"a`, `"a\"`} {
		if _, err := splitWords(line); err == nil || errors.Is(err, errNeedsShell) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// What is taken for words are a shell's words.
func FuzzSplitWords(f *testing.F) {
	for _, s := range []string{`a 'b c' "d \" e" f\ g`, "--x=y z", `"\\"`, "a'b'c", "a=b", "a{b,c}", "\x00", "a\rb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		words, err := splitWords(line)
		if err != nil || strings.ContainsAny(line, "\x00") || len(words) == 0 {
			return
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf '%s\\0' "+line).Output()
		if err != nil {
			t.Fatalf("%q is no command line for a shell: %v", line, err)
		}
		if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, words) {
			t.Errorf("%q: %q, and a shell says %q", line, words, got)
		}
	})
}
