package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"banger/internal/hostexec"
)

// sshd is an OpenSSH server on this machine, for one connection at a time, which it has with no port.
type sshd struct{ dir, config string }

// newSSHD makes one. If there can be none here, it says why.
func newSSHD(ctx context.Context, b *bed) (_ *sshd, why string) {
	server, err := hostexec.Look("sshd", "openssh-server")
	if err != nil {
		return nil, err.Error()
	}
	if os.Geteuid() != 0 {
		return nil, "the floor is an sshd that root can log in to"
	}
	const separated = "/run/sshd" // compiled into Debian's
	if _, err := os.Stat(separated); err != nil {
		return nil, "sshd needs the directory " + separated
	}
	dir, err := os.MkdirTemp(b.dir, "sshd")
	if err != nil {
		return nil, err.Error()
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{"host", "user"} {
		if out, err := exec.CommandContext(ctx, "ssh-keygen", "-qt", "ed25519", "-N", "", "-f", path(key)).CombinedOutput(); err != nil {
			return nil, fmt.Sprintf("ssh-keygen: %v: %s", err, out)
		}
	}
	serves := fmt.Sprintf("HostKey %s\nAuthorizedKeysFile %s\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n", path("host"), path("user.pub"))
	asks := fmt.Sprintf("Host floor\n  ProxyCommand %s -i -f %s\n  User root\n  IdentityFile %s\n  IdentitiesOnly yes\n"+
		"  StrictHostKeyChecking no\n  UserKnownHostsFile %s\n", server, path("sshd_config"), path("user"), path("known"))
	for name, text := range map[string]string{"sshd_config": serves, "config": asks} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			return nil, err.Error()
		}
	}
	return &sshd{dir: dir, config: path("config")}, ""
}

// sshTrue compares `ssh VM.vm true` with OpenSSH's own server here and the agent's round trip.
func sshTrue(ctx context.Context, b *bed, rounds int) ([]figure, error) {
	floor, why := newSSHD(ctx, b)
	if floor == nil {
		return nil, skipped(why)
	}
	defer os.RemoveAll(floor.dir) //nolint:errcheck // the bed removes what is left
	const vm = "bench-ssh"
	if _, err := b.banger(ctx, "vm", "create", "--quiet", "--name", vm, "--init", "agent"); err != nil {
		return nil, err
	}
	defer b.banger(context.WithoutCancel(ctx), "vm", "delete", "--force", vm) //nolint:errcheck // close tells
	config, err := b.output(ctx, "ssh-config")
	if err != nil {
		return nil, err
	}
	ours := filepath.Join(floor.dir, "banger")
	if err := os.WriteFile(ours, config, 0o600); err != nil {
		return nil, err
	}
	timed := func(config, host string) (time.Duration, error) {
		cmd := exec.CommandContext(ctx, "ssh", "-F", config, host, "true")
		var said bytes.Buffer
		cmd.Stderr, cmd.Env = &said, b.env()
		began := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("ssh %s true: %w: %s", host, err, said.Bytes())
		}
		return time.Since(began), nil
	}
	var local, guest, ping []time.Duration
	for i := range 2*rounds + 2 {
		l, err := timed(floor.config, "floor")
		if err != nil {
			return nil, err
		}
		g, err := timed(ours, vm+".vm")
		if err != nil {
			return nil, err
		}
		p, err := b.ping(ctx, vm)
		if err != nil {
			return nil, err
		}
		if i >= 2 { // the first ones warm the guest's code
			local, guest, ping = append(local, l), append(guest, g), append(ping, p)
		}
	}
	budget := median(local) + median(ping) + 30*time.Millisecond
	return []figure{{
		"ssh VM.vm true", spread(guest), "OpenSSH to a local sshd: " + spread(local) + ", agent round trip: " + spread(ping),
		"floor + 30 ms = " + ms(budget), median(guest) <= budget,
	}}, nil
}
