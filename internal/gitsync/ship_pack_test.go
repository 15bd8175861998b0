package gitsync

import "testing"

func TestWithoutCredentials(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"":                                   "",
		"https://example.org/x.git":          "https://example.org/x.git",
		"https://me:token@example.org/x.git": "https://example.org/x.git",
		"https://token@example.org/x.git":    "https://example.org/x.git",
		"ssh://git:word@example.org:22/x":    "ssh://git@example.org:22/x",
		"git@example.org:x.git":              "git@example.org:x.git",
		"../beside":                          "../beside",
		"https://me:to%zzken@example.org/x":  "",
	} {
		if got := withoutCredentials(remote); got != want {
			t.Errorf("%q became %q, want %q", remote, got, want)
		}
	}
}
