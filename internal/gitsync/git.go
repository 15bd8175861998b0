// Package gitsync moves working trees between a repository of the host and a guest. It owns how git is run on the host, what
// goes into a guest (ship*.go), and how what a guest sends back becomes git objects (collect*.go, quarantine*.go), patches,
// branches and merged files (patch*.go).
//
// It does not reach guests: archives come and go as streams. What comes from a guest is hostile: git on the host never
// reads a guest's configuration, index, hooks or attributes; paths, sizes and objects are checked by this package before git
// sees them, and everything happens in a quarantine repository with a directory of its own. Nothing here has locks or state;
// a [Changes] owns the directory of its quarantine until it is closed.
package gitsync

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// maxAnswer bounds what is kept in memory of git's output, in bytes.
const maxAnswer = 1 << 30

// call is one run of git on the host.
type call struct {
	gitDir string // the repository; empty: the one around dir
	dir    string // working directory; empty: gitDir
	// clean leaves out the configuration of the user and of the system. It is set for every repository that this package
	// made; a user's own repository is read as its owner's git reads it, without what could run programs or write.
	clean  bool
	config []string // more configuration, key=value
	env    []string // more environment
	args   []string
	stdin  io.Reader
}

// git runs git and writes its output to stdout. Whatever the repository says, git starts no hook, no file system monitor,
// no pager and no editor, asks nothing, fetches nothing and takes no lock that it could do without.
func git(ctx context.Context, c call, stdout io.Writer) error {
	cmd, err := c.command()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &said
	err = hostexec.Run(ctx, cmd)
	if status := hostexec.ExitCode(err); status >= 0 {
		text := said.String()
		text = strings.TrimSpace(text[max(0, len(text)-maxSaid):])
		return &gitError{err: err, text: fmt.Sprintf("git %s: exit status %d: %s", c.args[0], status, text)}
	}
	return err
}

// gitError is a failure of git, told without the options that every call has.
type gitError struct {
	text string
	err  error
}

func (e *gitError) Error() string { return e.text }
func (e *gitError) Unwrap() error { return e.err }

// maxSaid is how much of git's messages an error holds, in bytes.
const maxSaid = 2 << 10

// gitText is git with the output returned, without the newline at its end.
func gitText(ctx context.Context, c call) (string, error) {
	var out bytes.Buffer
	err := git(ctx, c, &boundedWriter{w: &out, left: maxAnswer})
	return strings.TrimSuffix(out.String(), "\n"), err
}

// gitFields is git with the output, which ends or separates its fields by NUL, returned as a list.
func gitFields(ctx context.Context, c call) ([]string, error) {
	text, err := gitText(ctx, c)
	if err != nil || text == "" {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(text, "\x00"), "\x00"), nil
}

func (c call) command() (hostexec.Cmd, error) {
	program, err := hostexec.Look("git", "git")
	if err != nil {
		return hostexec.Cmd{}, err
	}
	config := []string{
		"core.hooksPath=/dev/null", "core.fsmonitor=false", "core.pager=cat", "core.askPass=", "credential.helper=",
		"gc.auto=0", "maintenance.auto=false", "advice.detachedHead=false", "core.quotePath=true", "protocol.allow=never",
		"submodule.recurse=false", "core.untrackedCache=false",
	}
	if c.clean {
		config = append(config, "core.attributesFile=/dev/null", "core.excludesFile=/dev/null", "core.protectHFS=true",
			"core.protectNTFS=true", "core.autocrlf=false", "core.symlinks=true", "core.ignoreCase=false")
	}
	var args []string
	for _, kv := range append(config, c.config...) {
		args = append(args, "-c", kv)
	}
	if c.gitDir != "" {
		args = append(args, "--git-dir="+c.gitDir)
	}
	dir := c.dir
	if dir == "" {
		dir = c.gitDir
	}
	return hostexec.Cmd{
		Path: program, Args: append(args, c.args...), Env: append(environment(c.clean), c.env...), Dir: dir, Stdin: c.stdin,
	}, nil
}

// environment is the whole environment of git: nothing that points it at another repository or makes it run something.
func environment(clean bool) []string {
	env := []string{
		"LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0", "GIT_LITERAL_PATHSPECS=1", "GIT_NO_REPLACE_OBJECTS=1",
		"GIT_ATTR_NOSYSTEM=1", "GIT_EDITOR=false", "GIT_SEQUENCE_EDITOR=false", "GIT_ASKPASS=false", "SSH_ASKPASS=false",
		"GIT_PAGER=cat", "GIT_ADVICE=0",
	}
	keep := []string{"PATH", "TMPDIR"}
	if clean {
		env = append(env, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_CONFIG_GLOBAL=/dev/null", "HOME=/nonexistent")
	} else {
		keep = append(keep, "HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
	}
	for _, name := range keep {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// boundedWriter fails when more than left bytes are written.
type boundedWriter struct {
	w    io.Writer
	left int64
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, fault.New(fault.Exhausted, "git wrote more than expected")
	}
	return b.w.Write(p)
}

// treeEntry is one file, symbolic link or submodule of a tree.
type treeEntry struct {
	mode string // as git writes it: 100644, 100755, 120000, 160000
	id   string
}

// The modes of tree entries.
const (
	modeFile       = "100644"
	modeExecutable = "100755"
	modeSymlink    = "120000"
	modeSubmodule  = "160000"
)

// readTree returns all entries of a tree, by path.
func readTree(ctx context.Context, repo, tree string) (map[string]treeEntry, error) {
	fields, err := gitFields(ctx, call{gitDir: repo, clean: true, args: []string{"ls-tree", "-r", "-z", "--full-tree", tree}})
	if err != nil {
		return nil, fmt.Errorf("read tree %s: %w", tree, err)
	}
	entries := make(map[string]treeEntry, len(fields))
	for _, f := range fields {
		meta, path, ok := strings.Cut(f, "\t")
		parts := strings.Fields(meta)
		if !ok || len(parts) != 3 {
			return nil, fmt.Errorf("read tree %s: %q", tree, f)
		}
		entries[path] = treeEntry{mode: parts[0], id: parts[2]}
	}
	return entries, nil
}
