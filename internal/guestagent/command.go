package guestagent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command is an ExecSpec resolved against the guest's files.
type command struct {
	path string
	argv []string
	env  []string
	dir  string
	cred *syscall.Credential // nil: the agent's own
}

// resolve finds the user, the directory and the program of a command. extra is the environment of every command.
func resolve(spec guestproto.ExecSpec, extra []string) (*command, error) {
	if err := checkEnv(spec.Env); err != nil {
		return nil, err
	}
	u, err := readUser(spec.User)
	if err != nil {
		return nil, err
	}
	c := &command{argv: slices.Clone(spec.Args), dir: spec.Dir}
	if os.Geteuid() == 0 {
		c.cred = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
	}
	switch {
	case c.dir == "", c.dir == guestproto.HomeDir:
		if c.dir = u.home; !isDir(c.dir) {
			c.dir = "/"
		}
	case !filepath.IsAbs(c.dir):
		return nil, fault.New(fault.Invalid, "the directory %q is not absolute", c.dir)
	case spec.MakeDir:
		if err := os.MkdirAll(c.dir, 0o755); err != nil { // as container engines make it
			return nil, fault.New(fault.Precondition, "make the directory %s: %w", c.dir, err)
		}
	case !isDir(c.dir):
		return nil, fault.New(fault.Precondition, "the guest has no directory %s", c.dir)
	}
	c.env = environment(u, spec, extra)
	if len(c.argv) == 0 {
		// A login shell's argv[0] begins with a hyphen (login(1)).
		if c.path, err = findShell(u); err != nil {
			return nil, fault.New(fault.NotFound, "no command was given, the image names none, and %w", err)
		}
		c.argv = []string{"-" + filepath.Base(c.path)}
		return c, nil
	}
	if strings.ContainsRune(strings.Join(c.argv, ""), 0) {
		return nil, fault.New(fault.Invalid, "an argument holds a zero byte")
	}
	if is, err := c.resolveBuiltin(u); is || err != nil {
		return c, err
	}
	c.path, err = lookPath(c.argv[0], c.dir, getenv(c.env, "PATH"))
	return c, err
}

// findShell returns the user's shell, or the one that every system should have.
func findShell(u user) (string, error) {
	for _, path := range []string{u.shell, "/bin/sh"} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fault.New(fault.NotFound, "it has no shell %s", u.shell)
}

// environment is the base environment, overlaid with that of every command and that of this one.
func environment(u user, spec guestproto.ExecSpec, extra []string) []string {
	env := []string{
		"PATH=" + defaultPath, "HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name, "SHELL=" + u.shell, "LANG=C.UTF-8",
	}
	if spec.TTY {
		term := spec.Term
		if term == "" {
			term = "xterm"
		}
		env = append(env, "TERM="+term)
	}
	for _, word := range slices.Concat(extra, spec.Env) {
		name, _, _ := strings.Cut(word, "=")
		env = slices.DeleteFunc(env, func(w string) bool { return strings.HasPrefix(w, name+"=") })
		env = append(env, word)
	}
	return env
}

func checkEnv(env []string) error {
	for _, word := range env {
		if i := strings.IndexByte(word, '='); i < 1 || strings.ContainsRune(word, 0) {
			return fault.New(fault.Invalid, "bad environment word %q", clip(word, 80))
		}
	}
	return nil
}

func getenv(env []string, name string) string {
	for _, word := range env {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value
		}
	}
	return ""
}

// lookPath finds a program as execvp(3) does. fault.NotFound: there is none; fault.Denied: there is one that can't run.
func lookPath(name, dir, path string) (string, error) {
	if name == "" {
		return "", fault.New(fault.NotFound, "the command's name is empty")
	}
	var candidates []string
	if strings.Contains(name, "/") {
		candidates = []string{name}
	} else {
		for _, d := range filepath.SplitList(path) {
			candidates = append(candidates, filepath.Join(d, name))
		}
	}
	var denied error
	for _, p := range candidates {
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		info, err := os.Stat(p)
		switch {
		case err != nil:
		case info.IsDir():
			denied = fault.New(fault.Denied, "%s: is a directory", p)
		case info.Mode()&0o111 == 0:
			denied = fault.New(fault.Denied, "%s: permission denied", p)
		default:
			return p, nil
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fault.New(fault.NotFound, "%s: command not found", name)
}

// startError classifies what exec said.
func startError(c *command, err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return fault.New(fault.NotFound, "%s: its interpreter was not found", c.path)
	case errors.Is(err, syscall.E2BIG):
		return fault.New(fault.Invalid, "%s: %w", c.path, err)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		return fault.New(fault.Exhausted, "%s: %w", c.path, err)
	default:
		return fault.New(fault.Denied, "%s: %w", c.path, err)
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
