package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"banger/internal/fault"
)

// Paths is where everything lives. The zero value is of no use; [Load] makes one, and a test may write one out.
type Paths struct {
	State   string // what must last: database, disks, images, kernels
	Cache   string // what can be made again
	Runtime string // sockets and locks; gone after a reboot of the host
}

// locate follows the XDG base directory specification: an empty or relative variable counts as unset.
func locate(env func(string) string, h host) (Paths, error) {
	var p Paths
	for _, d := range []struct {
		to             *string
		variable, home string
	}{
		{&p.State, "XDG_STATE_HOME", ".local/state"},
		{&p.Cache, "XDG_CACHE_HOME", ".cache"},
	} {
		base, err := baseDir(env, d.variable, d.home)
		if err != nil {
			return Paths{}, err
		}
		*d.to = filepath.Join(base, "banger")
	}
	p.Runtime = runtimeDir(env, h)
	return p, nil
}

func baseDir(env func(string) string, variable, inHome string) (string, error) {
	if dir := env(variable); filepath.IsAbs(dir) {
		return filepath.Clean(dir), nil
	}
	if home := env("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, inHome), nil
	}
	return "", fault.New(fault.Invalid, "no home directory: HOME is not an absolute path").WithHint("set HOME or %s", variable)
}

// runtimeDir depends on nothing but the user where XDG_RUNTIME_DIR is unset, so that a daemon and a command line that
// were started differently find each other.
func runtimeDir(env func(string) string, h host) string {
	if dir := env("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "banger")
	}
	uid := strconv.Itoa(h.uid)
	dir := filepath.Join(h.userRuntime, uid)
	if info, err := os.Lstat(dir); err == nil && info.IsDir() && ownerOf(info) == h.uid {
		return filepath.Join(dir, "banger")
	}
	return filepath.Join(h.temp, "banger-"+uid)
}

// locateFile returns the absolute path of the configuration file and whether the user named it.
func locateFile(env func(string) string) (path string, explicit bool, err error) {
	if named := env("BANGER_CONFIG"); named != "" {
		path, err = filepath.Abs(named)
		if err != nil {
			return "", true, fmt.Errorf("find config file: %w", err)
		}
		return path, true, nil
	}
	base, err := baseDir(env, "XDG_CONFIG_HOME", ".config")
	if err != nil {
		return "", false, err
	}
	return filepath.Join(base, "banger", "config.toml"), false, nil
}

// DB is the database.
func (p Paths) DB() string { return filepath.Join(p.State, "banger.db") }

// Socket is where the daemon listens.
func (p Paths) Socket() string { return filepath.Join(p.Runtime, "banger.sock") }

// LockFile is held by the one daemon that uses State.
func (p Paths) LockFile() string { return filepath.Join(p.State, "daemon.lock") }

// DaemonLog is where a daemon that was started in the background logs to.
func (p Paths) DaemonLog() string { return filepath.Join(p.State, "daemon.log") }

// Images is the folder of the image store.
func (p Paths) Images() string { return filepath.Join(p.State, "images") }

// Kernels is the folder of the kernel store.
func (p Paths) Kernels() string { return filepath.Join(p.State, "kernels") }

// Workspaces is the directory of work in progress on what goes into VMs, and comes out of them.
func (p Paths) Workspaces() string { return filepath.Join(p.State, "workspaces") }

// VMs is the folder that holds, by its id, a folder for each VM: its disks, its logs and what its monitor recorded.
func (p Paths) VMs() string { return filepath.Join(p.State, "vms") }

// Templates is the folder that holds, by its id, a folder for each template.
func (p Paths) Templates() string { return filepath.Join(p.State, "templates") }

// Forks is the folder that holds what lasts as long as a fork takes.
func (p Paths) Forks() string { return filepath.Join(p.State, "forks") }

// SSH is the folder of the SSH keys, of which it is made with the first.
func (p Paths) SSH() string { return filepath.Join(p.State, "ssh") }

// VMRuntimes is the folder that holds, by its id, a folder for each VM that runs: its sockets and locks.
func (p Paths) VMRuntimes() string { return filepath.Join(p.Runtime, "vms") }

// longestSocket is the path of a socket in a VM's runtime folder as long as one may be: an id and a name of 16 bytes.
func (p Paths) longestSocket() string {
	return filepath.Join(p.VMRuntimes(), "0123456789ab", "0123456789abcdef")
}

// maxSocketPath is the room for a path in struct sockaddr_un less its final zero, in bytes, unix(7).
const maxSocketPath = 107

// EnsureDirs makes the directories that are missing, for this user alone (mode 0700), and verifies those that are there.
// It refuses a runtime directory that is a symbolic link, another user's or open to others, and one whose path leaves no
// room for the sockets in it.
func (p Paths) EnsureDirs() error {
	if over := len(p.longestSocket()) - maxSocketPath; over > 0 {
		return fault.New(fault.Invalid, "the runtime directory %s has a path that is %d characters too long for sockets", p.Runtime, over).
			WithHint("set XDG_RUNTIME_DIR to a directory with a shorter path, such as /tmp/run-%d with mode 0700", os.Geteuid())
	}
	if err := ensureRuntime(p.Runtime, os.Geteuid()); err != nil {
		return err
	}
	for _, dir := range []string{p.VMRuntimes(), p.State, p.Cache, p.VMs(), p.Images(), p.Kernels(), p.Templates(), p.Forks()} {
		if err := ensure(dir, os.Geteuid(), os.Stat); err != nil {
			return err
		}
	}
	return nil
}

// ensureRuntime is stricter than ensure, because what is said to the daemon's socket is done with the user's rights: in a
// folder that everyone may write, somebody else could have put something there first.
func ensureRuntime(dir string, uid int) error {
	parent := filepath.Dir(dir)
	// Root that kept a user's environment (sudo -E) must not leave its files in that user's directory.
	if info, err := os.Stat(parent); err == nil && ownerOf(info) != uid && ownerOf(info) != 0 {
		return fault.New(fault.Denied, "the runtime directory %s is in a directory of user %d, and banger runs as user %d",
			dir, ownerOf(info), uid).WithHint("unset XDG_RUNTIME_DIR, or let it name a directory of user %d", uid)
	}
	return ensure(dir, uid, os.Lstat)
}

// ensure makes or verifies a private directory; stat is os.Lstat to refuse symbolic links, os.Stat to follow them.
func ensure(dir string, uid int, stat func(string) (fs.FileInfo, error)) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	info, err := stat(dir)
	if err != nil {
		return fmt.Errorf("check directory: %w", err)
	}
	switch mode := info.Mode(); {
	case mode.Type() == fs.ModeSymlink:
		return fault.New(fault.Denied, "%s is a symbolic link", dir).WithHint("remove it: rm %s", dir)
	case !mode.IsDir():
		return fault.New(fault.Denied, "%s is not a directory", dir).WithHint("move it away")
	case ownerOf(info) != uid:
		return fault.New(fault.Denied, "%s belongs to user %d, and banger runs as user %d", dir, ownerOf(info), uid).
			WithHint("run banger as that user, or move the directory away")
	case mode.Perm()&0o077 != 0:
		return fault.New(fault.Denied, "%s is open to other users (mode %04o)", dir, mode.Perm()).WithHint("close it: chmod 700 %s", dir)
	}
	return nil
}

func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
