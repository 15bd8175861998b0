package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// configure gives the bed's daemon another configuration file.
func (b *bed) configure(ctx context.Context, text string) error {
	path := filepath.Join(b.dir, "config", "banger", "config.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		return err
	}
	_, err := b.banger(ctx, "daemon", "stop")
	return err
}

// Configurations of the bed. Templates that are made in the background would be in the way of what is measured.
const (
	withoutTemplates = "[templates]\nenabled = false\n"
	withTemplates    = "[templates]\nenabled = true\n"
	withPool         = "[templates]\nenabled = true\nready = 1\n"
)

// with measures under another configuration.
func with(text string, m measure) measure {
	return func(ctx context.Context, b *bed, rounds int) ([]figure, error) {
		if err := b.configure(ctx, text); err != nil {
			return nil, err
		}
		figures, err := m(ctx, b, rounds)
		return figures, errors.Join(err, b.configure(context.WithoutCancel(ctx), withoutTemplates))
	}
}

// logged counts the lines of the daemon's log with a text, and returns the last of them.
func (b *bed) logged(text string) (n int, last string) {
	log, _ := os.ReadFile(b.paths.DaemonLog())
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, text) {
			n, last = n+1, line
		}
	}
	return n, last
}

// spareTimeout bounds how long the making of a spare may take.
const spareTimeout = time.Minute

// awaitSpare waits until so many spares have been made.
func (b *bed) awaitSpare(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	for {
		if made, _ := b.logged(`msg="spare made"`); made >= n {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("no spare is made")
		}
	}
}

// poolRun measures `run --rm -- true` with a VM that is kept ready, beside a container of the same root.
func poolRun(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	if _, err := b.banger(ctx, "template", "build", "--init", "agent"); err != nil {
		return nil, err
	}
	made, _ := b.logged(`msg="spare made"`)
	run := func() (time.Duration, string, error) {
		return b.timed(ctx, "run", "--rm", "--quiet", "--timings", "--init", "agent", "--", "true")
	}
	if _, _, err := run(); err != nil { // which makes the kind one that is used
		return nil, err
	}
	pod, why := newPodman(ctx, b)
	if pod != nil {
		defer pod.close() //nolint:contextcheck // must end whatever became of the context
	}
	var whole, podman []time.Duration
	stages := stageTimes{}
	for range 3 * rounds {
		made++
		if err := b.awaitSpare(ctx, made); err != nil {
			return nil, err
		}
		d, text, err := run()
		if err != nil {
			return nil, err
		}
		if !strings.Contains(text, "claim") {
			return nil, errors.New("a VM was not taken from the pool: " + text)
		}
		whole = append(whole, d)
		stages.add(text)
		if pod != nil {
			if d, err = pod.timed(ctx); err != nil {
				pod, why = nil, err.Error()
				continue
			}
			podman = append(podman, d)
		}
	}
	const budget = 120 * time.Millisecond
	figures := []figure{{"run --rm -- true from the pool, p50", spread(whole), "", "<= " + ms(budget), median(whole) <= budget}}
	if pod != nil {
		figures = append(figures, figure{"the same, beside a container", spread(whole), "podman run: " + spread(podman), "<= floor", median(whole) <= median(podman)})
	} else {
		figures = append(figures, figure{"the same, beside a container", spread(whole), "skipped: " + why, "", true})
	}
	return append(figures, stages.figures("pool")...), nil
}

// podman runs containers of the bed's image, in a store of its own.
type podman struct{ dir, run string }

// newPodman loads the bed's image. Without a podman, or with one that can't, it returns why not.
func newPodman(ctx context.Context, b *bed) (_ *podman, why string) {
	if _, err := exec.LookPath("podman"); err != nil {
		return nil, "podman is not installed"
	}
	short, err := os.MkdirTemp("", "bp") // podman refuses long ones
	if err != nil {
		return nil, err.Error()
	}
	p := &podman{dir: filepath.Join(b.dir, "podman"), run: short}
	archive := filepath.Join(b.dir, "image.tar")
	defer os.Remove(archive) //nolint:errcheck // in the bed
	if _, err := b.banger(ctx, "image", "export", "debian-bookworm", "-o", archive); err != nil {
		p.close() //nolint:contextcheck // must end whatever became of the context
		return nil, err.Error()
	}
	if err := p.command(ctx, "load", "--quiet", "--input", archive); err != nil {
		p.close() //nolint:contextcheck // likewise
		return nil, err.Error()
	}
	return p, ""
}

func (p *podman) command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "podman", slices.Concat([]string{"--root", p.dir, "--runroot", p.run}, args)...)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("podman %s: %w: %s", args[0], err, strings.TrimSpace(text.String()))
	}
	return nil
}

// timed runs true in a container with a network, as VMs have one. The limits are those that any user may set.
func (p *podman) timed(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	err := p.command(ctx, "run", "--rm", "--pull", "never", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000",
		"docker.io/library/debian-bookworm", "true")
	return time.Since(began), err
}

func (p *podman) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = p.command(ctx, "rmi", "--all", "--force")
	_ = errors.Join(os.RemoveAll(p.dir), os.RemoveAll(p.run)) // it is temporary
}
