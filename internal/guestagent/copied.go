package guestagent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bootIDFile is the kernel's random number of this boot.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// setBootID shows every process of the guest another boot id, for the kernel's own can't be changed: a file is mounted
// over it, in the place of an earlier one. Systemd's propagation takes it into the mount namespaces of its services; a
// container that has a /proc of its own keeps the kernel's.
func setBootID(id string) error {
	const dir = "/run/banger"
	if err := os.MkdirAll(dir, 0o755); err != nil { // as the rest of /run
		return fmt.Errorf("set the boot id: %w", err)
	}
	path := filepath.Join(dir, "boot_id")
	if err := replaceFile(path, id+"\n", 0o444); err != nil {
		return fmt.Errorf("set the boot id: %w", err)
	}
	_ = unix.Unmount(bootIDFile, unix.MNT_DETACH) // not mounted is fine
	if err := unix.Mount(path, bootIDFile, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("set the boot id: %w", err)
	}
	return nil
}

// forgetOriginal removes what only the guest that this one is a copy of may have: systemd's random seed, and the host keys
// of sshd. New keys are made in the background, if the guest can; until then it has none.
func (m *machine) forgetOriginal() error {
	keys, err := forgetSecrets("/")
	if err != nil || len(keys) == 0 {
		return err
	}
	go m.makeHostKeys(keys)
	return nil
}

// forgetSecrets removes the secrets of a root and returns the host keys among them.
func forgetSecrets(root string) (keys []string, err error) {
	keys, _ = filepath.Glob(filepath.Join(root, "etc/ssh/ssh_host_*_key")) // the pattern is a good one
	gone := []string{filepath.Join(root, "var/lib/systemd/random-seed")}
	for _, key := range keys {
		gone = append(gone, key, key+".pub")
	}
	for _, path := range gone {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("forget a secret of the original: %w", err)
		}
	}
	return keys, nil
}

// makeHostKeys makes keys of the kinds that sshd had, by OpenSSH's own tool, and then has a running sshd take them. It does
// what it can: without the tool there are none, and sshd says so.
func (m *machine) makeHostKeys(keys []string) {
	tool := "/usr/bin/ssh-keygen"
	if !isFile(tool) {
		return
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close() //nolint:errcheck // nothing is buffered
	for _, key := range keys {
		kind := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(key), "ssh_host_"), "_key")
		child, err := m.kids.start(tool, []string{tool, "-q", "-t", kind, "-N", "", "-f", key}, &syscall.ProcAttr{
			Dir: "/", Env: []string{"PATH=" + defaultPath}, Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
			Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			return
		}
		<-child.done
	}
	reloadSSHD("/")
}

// reloadSSHD makes a running sshd read its keys anew: it executes itself (sshd(8), SIGHUP). Connections that it has go on.
func reloadSSHD(root string) {
	content, err := os.ReadFile(filepath.Join(root, "run/sshd.pid"))
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || pid < 2 {
		return
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) == "sshd" {
		_ = unix.Kill(pid, unix.SIGHUP)
	}
}
