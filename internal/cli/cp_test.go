package cli

import "testing"

func TestParsePlace(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]copyPlace{
		"a:/x": {"a", "/x"}, "a:": {"a", ""}, "a:x:y": {"a", "x:y"}, "x": {"", "x"}, "-": {"", "-"}, "./a:b": {"", "./a:b"},
		"/a:b": {"", "/a:b"}, "d/a:b": {"", "d/a:b"}, ".a:b": {"", ".a:b"}, ":x": {"", ":x"}, "a:-": {"a", "-"},
	} {
		if got := parsePlace(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	for path, want := range map[string]string{
		"x": "x", "/a/b": "b", "a/b/": "b", "a/.": ".", "a/./": ".", ".": ".", "..": ".", "../..": ".", "/": ".", "": ".", "a/..": ".", "./a": "a",
	} {
		if got := (copyPlace{"a", path}).name(); got != want {
			t.Errorf("the name of %q is %q, want %q", path, got, want)
		}
	}
}

func TestParsePair(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]portPair{"80": {80, 80}, "8080:80": {8080, 80}, "0:80": {0, 80}} {
		if got, err := parsePair(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "80:", ":80", "80:0", "65536", "1:2:3", "-1", "80/udp"} {
		if got, err := parsePair(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
