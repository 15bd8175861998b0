package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/progress"
)

// Recipe describes a root filesystem.
type Recipe struct {
	Suite    string   // "bookworm"
	Variant  string   // of mmdebstrap: "minbase"
	Packages []string // besides those of the variant
	Exclude  []string // globs of paths, for the shell and dpkg alike, that are left out; trusted
	Finish   string   // shell script run on the host when all is installed, with the root directory as $1
}

// Paths are where a bootstrap works.
type Paths struct {
	Work string // empty directory for this call alone; removed by the caller
	Log  string // file that gets all messages of the programs; kept
}

// Bootstrap builds a root filesystem and writes it to w as a tar stream. It keeps nothing. As root it works in Work;
// as an ordinary user in a directory of its own below the temporary directory, because the user's subordinate ids can't
// reach private directories. What a killed bootstrap with the same Log left there is removed first.
func (a *Archive) Bootstrap(ctx context.Context, r Recipe, at Paths, w io.Writer, sink progress.Sink) error {
	program, err := hostexec.Look("mmdebstrap", "mmdebstrap")
	if err != nil {
		return err
	}
	arch, err := architecture()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		if err := checkUnshare(); err != nil {
			return err
		}
	}
	sources, err := a.Sources(ctx, r.Suite, at.Work)
	if err != nil {
		return err
	}
	acquire, err := acquireOptions(ctx)
	if err != nil {
		return err
	}
	if err := writeFiles(at.Work, map[string]string{"aptopt": acquire + "Acquire::Retries \"3\";\n"}); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(at.Log), 0o700); err != nil {
		return err
	}
	scratch, err := newScratch(ctx, program, at)
	if err != nil {
		return err
	}
	defer scratch.remove(context.WithoutCancel(ctx), at)
	log, err := os.OpenFile(at.Log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open build log: %w", err)
	}
	defer log.Close() //nolint:errcheck // a log
	watch := &watcher{sink: sink, stage: "install " + r.Suite}
	end := sink.Stage(watch.stage)
	err = runBootstrap(ctx, hostexec.Cmd{
		Path: program, Args: bootstrapArgs(r, arch, at), Env: environ(scratch.dir),
		Stdin: strings.NewReader(sources), Stdout: w, Stderr: io.MultiWriter(log, watch),
	}, watch, at.Log)
	end(err)
	return err
}

// runBootstrap runs mmdebstrap. As root it gets namespaces of its own, so that no mount and no process of it can outlive
// it, even if banger is killed; as a user it makes them itself.
func runBootstrap(ctx context.Context, c hostexec.Cmd, watch *watcher, logPath string) error {
	if os.Geteuid() == 0 {
		unshare, err := hostexec.Look("unshare", "util-linux")
		if err != nil {
			return err
		}
		c.Args = append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", c.Path}, c.Args...)
		c.Path = unshare
	}
	err := hostexec.Run(ctx, c)
	switch {
	case err == nil || hostexec.ExitCode(err) < 0:
		return err
	case watch.full:
		return fault.New(fault.Exhausted, "no space left on the disk").WithHint("free some space; the log is in %s", logPath)
	default:
		return fault.New(fault.Unavailable, "mmdebstrap failed: %s", watch.reason()).WithHint("the whole log is in %s", logPath)
	}
}

// aptoptArg names the file of apt's options in the work directory.
func aptoptArg(at Paths) string { return "--aptopt=" + filepath.Join(at.Work, "aptopt") }

func bootstrapArgs(r Recipe, arch string, at Paths) []string {
	mode := "unshare"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	args := []string{
		"--verbose", "--mode=" + mode, "--format=tar", "--architectures=" + arch, "--variant=" + r.Variant,
		"--include=" + strings.Join(r.Packages, ","), aptoptArg(at), "--dpkgopt=force-unsafe-io",
	}
	if len(r.Exclude) > 0 {
		// Not by dpkgopt: mmdebstrap then sends every essential package through a filter in Python, 20 s in all.
		config, remove := "", "rm -rf --"
		for _, glob := range r.Exclude {
			config += "path-exclude=" + glob + "\n"
			remove += ` "$1"` + glob
		}
		args = append(args,
			"--extract-hook=printf %s "+quote(config)+` >"$1"/etc/dpkg/dpkg.cfg.d/99exclude`,
			`--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99exclude; `+remove)
	}
	if r.Finish != "" {
		args = append(args, "--customize-hook="+r.Finish)
	}
	// These settings were for the build; the proxy in them is the host's.
	args = append(args, `--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap`)
	return append(args, r.Suite, "-", "-")
}

// checkUnshare finds out whether an ordinary user can build a root filesystem here.
func checkUnshare() error {
	if _, err := hostexec.Look("newuidmap", "uidmap"); err != nil {
		return err
	}
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("who am I: %w", err)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		text, err := os.ReadFile(file)
		if err == nil && hasSubIDs(string(text), me.Username, me.Uid) {
			continue
		}
		return fault.New(fault.Unsupported, "user %s has no subordinate ids in %s, which building an image takes", me.Username, file).
			WithHint("give it some: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", me.Username)
	}
	return nil
}

func hasSubIDs(table, name, uid string) bool {
	for line := range strings.Lines(table) {
		owner, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok && (owner == name || owner == uid) {
			return true
		}
	}
	return false
}

const scratchPrefix = "banger-build-"

// scratch is the directory that mmdebstrap works in.
type scratch struct {
	program string
	dir     string
	record  string // file that names dir, written before dir is used; empty if dir is part of the work directory
}

// newScratch makes the directory and removes what earlier calls, now dead, left, with the processes that still work there.
// What can't be removed stays on record for the next call.
func newScratch(ctx context.Context, program string, at Paths) (*scratch, error) {
	if os.Geteuid() == 0 {
		return &scratch{dir: at.Work}, nil
	}
	s := &scratch{program: program, record: at.Log + ".scratch"}
	endOrphans("/proc", aptoptArg(at))
	var kept strings.Builder
	old, _ := os.ReadFile(s.record) // none, or unreadable: nothing to remove
	for dir := range strings.Lines(string(old)) {
		dir = strings.TrimSpace(dir)
		if !strings.HasPrefix(filepath.Base(dir), scratchPrefix) {
			continue
		}
		if !removeScratch(ctx, program, dir) {
			kept.WriteString(dir + "\n")
		}
	}
	parent := os.Getenv("TMPDIR")
	if parent == "" {
		parent = "/var/tmp" // unlike /tmp never in memory
	}
	dir, err := os.MkdirTemp(parent, scratchPrefix)
	if err != nil {
		return nil, fmt.Errorf("make build directory: %w", err)
	}
	s.dir = dir
	err = errors.Join(
		os.WriteFile(s.record, []byte(kept.String()+dir+"\n"), 0o600),
		os.Chmod(dir, 0o755), // subordinate ids must pass, and list it to delete
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make build directory: %w", err), os.Remove(dir))
	}
	return s, nil
}

// remove ends what still runs and deletes the directory; the record names it until the next call finds it gone.
func (s *scratch) remove(ctx context.Context, at Paths) {
	if s.record != "" {
		endOrphans("/proc", aptoptArg(at))
		removeScratch(ctx, s.program, s.dir)
	}
}

// endOrphans kills the processes that have arg among their arguments. In a user namespace mmdebstrap's processes don't die
// with its first one, and may then wait for each other for ever; the namespace's owner may kill them. The argument
// names a directory that only one call at a time uses, so whoever has it is this call's or a dead one's.
func endOrphans(proc, arg string) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return
	}
	mark := []byte("\x00" + arg + "\x00")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 1 || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(filepath.Join(proc, e.Name(), "cmdline"))
		if err == nil && bytes.Contains(args, mark) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// removeScratch deletes a directory and reports whether it is gone. Files in it may belong to subordinate ids, which only a
// user namespace can delete.
func removeScratch(ctx context.Context, program, dir string) bool {
	if os.RemoveAll(dir) != nil {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_ = hostexec.Run(ctx, hostexec.Cmd{Path: program, Args: []string{"--unshare-helper", "rm", "-rf", "--", dir}})
	}
	return os.RemoveAll(dir) == nil
}
