package version

import (
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

func TestGetIsComplete(t *testing.T) {
	t.Parallel()
	i := Get()
	if i.Release == "" || i.Commit == "" || i.Go == "" || !strings.Contains(i.Platform, "/") {
		t.Errorf("incomplete: %+v", i)
	}
}

func TestString(t *testing.T) {
	t.Parallel()
	i := Info{Release: "v1.2.3", Commit: strings.Repeat("ab", 20), Built: parseSeconds("86400"), Go: "go1.26", Platform: "linux/amd64"}
	if got, want := i.String(), "v1.2.3 (commit abababababab, 1970-01-02, go1.26 linux/amd64)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	i.Built = parseSeconds("soon")
	if got, want := i.String(), "v1.2.3 (commit abababababab, go1.26 linux/amd64)"; got != want {
		t.Errorf("without a time: got %q, want %q", got, want)
	}
}

func TestFromVCS(t *testing.T) {
	t.Parallel()
	commit, built := fromVCS([]debug.BuildSetting{
		{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2024-02-03T04:05:06Z"}, {Key: "vcs.modified", Value: "true"},
	})
	if commit != "abc-dirty" || !built.Equal(time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)) {
		t.Errorf("got %q, %v", commit, built)
	}
	if commit, built := fromVCS(nil); commit != "" || !built.IsZero() {
		t.Errorf("without a repository: %q, %v", commit, built)
	}
}
