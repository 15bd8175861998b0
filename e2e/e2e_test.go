//go:build vm

// Package e2e runs the scenarios of testdata over the real binaries and real VMs. Each scenario has directories, a daemon
// and VMs of its own; the images and kernels are built once by banger itself and linked into each scenario's state.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// bench is what all scenarios share.
type bench struct {
	bin  string // directory with the binaries under test
	seed string // state and cache with images and kernels in them
}

var shared bench // made once by TestMain

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "be2e")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // temporary
	shared = bench{bin: filepath.Join(dir, "bin"), seed: filepath.Join(dir, "seed")}
	if err := build(shared.bin); err != nil {
		return 1, err
	}
	if err := shared.sow(); err != nil {
		return 1, fmt.Errorf("build images and kernels: %w", err)
	}
	return m.Run(), nil
}

// build builds the binaries under test, with the race detector in the host's.
func build(bin string) error {
	for _, b := range []struct {
		pkg string
		cgo string
		arg []string
	}{
		{"banger/cmd/banger", "1", []string{"-race"}},
		{"banger/cmd/banger-guest", "0", []string{"-trimpath", "-ldflags=-s -w"}},
	} {
		args := append(append([]string{"build", "-buildvcs=false", "-o", bin + "/"}, b.arg...), b.pkg)
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", b.pkg, err, out)
		}
	}
	return nil
}

// sow makes the seed by using banger as a newcomer would. BANGER_E2E_SEED names a directory that keeps it between runs.
func (b *bench) sow() error {
	if keep := os.Getenv("BANGER_E2E_SEED"); keep != "" {
		b.seed = keep
	}
	run, err := os.MkdirTemp("", "be2e")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run) //nolint:errcheck // temporary
	env := append(os.Environ(), homeEnv(b.seed, run)...)
	for _, args := range [][]string{
		{"vm", "create", "--no-start", "--name", "seed"}, {"vm", "delete", "seed"}, {"daemon", "stop"},
	} {
		cmd := exec.Command(filepath.Join(b.bin, "banger"), args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("banger %s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

// homeEnv is the environment that puts all of banger's files below dir, and its sockets in run.
func homeEnv(dir, run string) []string {
	return []string{
		"HOME=" + filepath.Join(dir, "home"),
		"XDG_STATE_HOME=" + filepath.Join(dir, "state"),
		"XDG_CACHE_HOME=" + filepath.Join(dir, "cache"),
		"XDG_CONFIG_HOME=" + filepath.Join(dir, "config"),
		"XDG_RUNTIME_DIR=" + run,
		"BANGER_CONFIG=",
	}
}

// plant gives a scenario its own state, with the seed's images and kernels hard-linked into it: they never change.
func (b *bench) plant(dir string) error {
	for _, part := range []string{"state/banger/images", "state/banger/kernels", "cache/banger"} {
		from, to := filepath.Join(b.seed, part), filepath.Join(dir, part)
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.MkdirAll(filepath.Join(to, rel), 0o700)
			}
			return link(path, filepath.Join(to, rel))
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Chmod(filepath.Join(dir, "state/banger"), 0o700)
}

// link makes a hard link, or a copy where the two are on different file systems.
func link(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	return exec.Command("cp", "--sparse=always", "--", from, to).Run()
}

func TestScenarios(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "cgroups":
				return cgroupsWork(), nil
			case "static-busybox":
				return hasStaticBusybox(), nil
			case "soak":
				return os.Getenv("BANGER_SOAK") != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"kill9":      cmdKill9,
			"noleaks":    cmdNoLeaks,
			"boot-id":    cmdBootID,
			"eventually": cmdEventually,
			"group":      cmdGroup,
			"static":     cmdStatic,
			"archive":    cmdArchive,
			"registry":   cmdRegistry,
			"push":       cmdPush,
			"crash":      cmdCrash,
			"database":   cmdDatabase,
		},
	})
}

// setup prepares one scenario and takes everything down after it, however it ended.
func setup(env *testscript.Env) error {
	run, err := os.MkdirTemp("", "be2e") // short: socket paths are limited
	if err != nil {
		return err
	}
	home := homeEnv(env.WorkDir, run)
	env.Vars = append(env.Vars, home...)
	env.Setenv("PATH", shared.bin+":"+os.Getenv("PATH"))
	env.Setenv("BANGER_GUEST", filepath.Join(shared.bin, "banger-guest"))
	env.Setenv("TERM", "xterm")
	if err := shared.plant(env.WorkDir); err != nil {
		return err
	}
	if err := withoutTemplates(filepath.Join(env.WorkDir, "config", "banger", "config.toml")); err != nil {
		return err
	}
	environ := append(os.Environ(), env.Vars...)
	env.Defer(func() {
		takeDown(environ, env.WorkDir)
		_ = os.RemoveAll(run)
	})
	return nil
}

// withoutTemplates turns templates off in a configuration that does not speak of them: one would be made in the background
// after the first boot of every scenario.
func withoutTemplates(path string) error {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || strings.Contains(string(text), "[templates]") {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, append([]byte("[templates]\nenabled = false\n\n"), text...), 0o600)
}

// takeDown ends a scenario's VMs and daemon by banger's own means, then whatever is still there.
func takeDown(environ []string, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	script := `banger vm list -q | xargs -r banger vm delete --force; banger daemon stop`
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Env = environ
	_ = cmd.Run()
	for _, pid := range processesOf(dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
