package config

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"banger/internal/fault"
)

func TestLocate(t *testing.T) {
	t.Parallel()
	uid := os.Geteuid()
	run := t.TempDir()
	mine := filepath.Join(run, "with")
	if err := os.MkdirAll(filepath.Join(mine, strconv.Itoa(uid)), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		env  func(string) string
		host host
		want Paths
	}{
		{
			"home only", environ("HOME", "/h"),
			host{uid: uid, userRuntime: run, temp: "/tmp"},
			Paths{"/h/.local/state/banger", "/h/.cache/banger", "/tmp/banger-" + strconv.Itoa(uid)},
		},
		{
			"runtime directory of the system", environ("HOME", "/h"),
			host{uid: uid, userRuntime: mine, temp: "/tmp"},
			Paths{"/h/.local/state/banger", "/h/.cache/banger", mine + "/" + strconv.Itoa(uid) + "/banger"},
		},
		{
			"another user's runtime directory", environ("HOME", "/h"),
			host{uid: uid + 1, userRuntime: mine, temp: "/tmp"},
			Paths{"/h/.local/state/banger", "/h/.cache/banger", "/tmp/banger-" + strconv.Itoa(uid+1)},
		},
		{
			"all set, no home", environ("XDG_STATE_HOME", "/s", "XDG_CACHE_HOME", "/c/", "XDG_RUNTIME_DIR", "/r"),
			host{},
			Paths{"/s/banger", "/c/banger", "/r/banger"},
		},
		{
			"relative ones do not count", environ("HOME", "/h", "XDG_STATE_HOME", "s", "XDG_CACHE_HOME", ".", "XDG_RUNTIME_DIR", "r"),
			host{uid: 7, userRuntime: "/nowhere", temp: "/t"},
			Paths{"/h/.local/state/banger", "/h/.cache/banger", "/t/banger-7"},
		},
	} {
		got, err := locate(tc.env, tc.host)
		if err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v, want %+v", tc.name, got, err, tc.want)
		}
	}
	if _, err := locate(environ("HOME", "relative"), host{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no home: error %v", err)
	}
}

func TestNamesAreDistinct(t *testing.T) {
	t.Parallel()
	p := Paths{State: "/s", Cache: "/c", Runtime: "/r"}
	seen := map[string]bool{}
	for _, path := range []string{
		p.DB(), p.Socket(), p.LockFile(), p.DaemonLog(), p.Images(), p.Kernels(), p.VMs(), p.VMRuntimes(), p.State, p.Cache, p.Runtime,
	} {
		if seen[path] {
			t.Errorf("%s has two uses", path)
		}
		seen[path] = true
	}
}

func under(dir string) Paths {
	return Paths{State: filepath.Join(dir, "s"), Cache: filepath.Join(dir, "c"), Runtime: filepath.Join(dir, "r")}
}

// short returns a temporary directory whose path is short enough for sockets.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "banger") //nolint:usetesting // the directory of a test has a long path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestEnsureDirs(t *testing.T) {
	t.Parallel()
	p := under(short(t))
	for range 2 { // the second time everything is there
		if err := p.EnsureDirs(); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{p.State, p.Cache, p.Runtime, p.VMs(), p.Images(), p.Kernels(), p.VMRuntimes()} {
		info, err := os.Lstat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != os.ModeDir|0o700 {
			t.Errorf("%s has mode %v", dir, got)
		}
	}
}

func TestEnsureDirsRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		prepare func(p Paths) error
		want    string
	}{
		{"runtime is a link", func(p Paths) error {
			if err := os.Mkdir(p.Runtime+"2", 0o700); err != nil {
				return err
			}
			return os.Symlink(p.Runtime+"2", p.Runtime)
		}, "is a symbolic link"},
		{"runtime is a dangling link", func(p Paths) error { return os.Symlink("nowhere", p.Runtime) }, "is a symbolic link"},
		{"runtime is a file", func(p Paths) error { return os.WriteFile(p.Runtime, nil, 0o600) }, "is not a directory"},
		{"runtime is open", func(p Paths) error { return mkdirMode(p.Runtime, 0o755) }, "is open to other users (mode 0755)"},
		{"state is open", func(p Paths) error { return mkdirMode(p.State, 0o770) }, "is open to other users (mode 0770)"},
		{"state is a file", func(p Paths) error { return os.WriteFile(p.State, nil, 0o600) }, "is not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := under(short(t))
			if err := tc.prepare(p); err != nil {
				t.Fatal(err)
			}
			err := p.EnsureDirs()
			if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if fault.HintOf(err) == "" {
				t.Error("no hint")
			}
		})
	}
}

func mkdirMode(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode) // the umask took some away
}

// The user's files may be kept elsewhere by a link; only the runtime directory must be where it seems to be.
func TestEnsureDirsFollowsLinksOfState(t *testing.T) {
	t.Parallel()
	p := under(short(t))
	if err := os.Mkdir(p.State+"2", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(p.State+"2", p.State); err != nil {
		t.Fatal(err)
	}
	if err := p.EnsureDirs(); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureRefusesOtherOwners(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// The same check from another user's point of view: what this process makes is foreign to uid + 1.
	other := os.Geteuid() + 1
	if err := ensure(filepath.Join(dir, "d"), other, os.Lstat); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "belongs to user") {
		t.Errorf("foreign directory: error %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make another user's directory")
	}
	theirs := filepath.Join(dir, "theirs")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 12345, 12345); err != nil {
		t.Skipf("cannot give a directory away: %v", err)
	}
	err := ensureRuntime(filepath.Join(theirs, "banger"), 0)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "in a directory of user 12345") {
		t.Errorf("root in a user's directory: error %v", err)
	}
	if _, err := os.Lstat(filepath.Join(theirs, "banger")); err == nil {
		t.Error("a directory was made there nevertheless")
	}
}

func TestEnsureDirsRefusesLongPaths(t *testing.T) {
	t.Parallel()
	base := short(t)
	p := under(base)
	room := maxSocketPath - len(p.longestSocket())
	p.Runtime += strings.Repeat("x", room)
	if err := p.EnsureDirs(); err != nil {
		t.Errorf("the longest path that fits is refused: %v", err)
	}
	p.Runtime += "x"
	err := p.EnsureDirs()
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "1 characters too long") || !strings.Contains(fault.HintOf(err), "XDG_RUNTIME_DIR") {
		t.Errorf("error %v, hint %q", err, fault.HintOf(err))
	}
	if _, err := os.Stat(p.Runtime); err == nil {
		t.Error("the directory was made nevertheless")
	}
}
