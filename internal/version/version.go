// Package version says which build of banger this is. Release builds have it stamped in by the linker (see the Makefile);
// any other build falls back to what the Go tool recorded. It owns nothing else.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
)

// Set by the linker: -X banger/internal/version.release=...
var (
	release string //nolint:gochecknoglobals // set by the linker
	commit  string //nolint:gochecknoglobals // set by the linker
	built   string //nolint:gochecknoglobals // set by the linker; seconds since 1970
)

// Info describes a build.
type Info struct {
	Release  string    // as git describe says, or "devel"
	Commit   string    // full hash, with "-dirty" if the tree had changes; "unknown" if it was not recorded
	Built    time.Time // time of the commit, or SOURCE_DATE_EPOCH; zero if not recorded. In UTC
	Go       string    // version of the Go toolchain
	Platform string    // as in linux/amd64
}

// Get returns what is known about the running program.
func Get() Info {
	info := Info{Release: release, Commit: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info.Built = parseSeconds(built)
	if bi, ok := debug.ReadBuildInfo(); ok && info.Commit == "" {
		info.Commit, info.Built = fromVCS(bi.Settings)
	}
	if info.Release == "" {
		info.Release = "devel"
	}
	if info.Commit == "" {
		info.Commit = "unknown"
	}
	return info
}

// String is the line of the running program: what two processes compare to see whether they are of one build.
func String() string { return Get().String() }

// String is one line for people: release, short commit and time.
func (i Info) String() string {
	s := fmt.Sprintf("%s (commit %.12s", i.Release, i.Commit)
	if !i.Built.IsZero() {
		s += ", " + i.Built.Format(time.DateOnly)
	}
	return s + ", " + i.Go + " " + i.Platform + ")"
}

func fromVCS(settings []debug.BuildSetting) (commit string, built time.Time) {
	dirty := false
	for _, s := range settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.time":
			built, _ = time.Parse(time.RFC3339, s.Value) // zero if it is not a time
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if commit != "" && dirty {
		commit += "-dirty"
	}
	return commit, built.UTC()
}

func parseSeconds(text string) time.Time {
	var n int64
	if _, err := fmt.Sscan(text, &n); err != nil {
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}
