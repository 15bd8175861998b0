package guestagent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openRandom opens the kernel's random number generator. What fails here fails when it is used.
func openRandom() *os.File {
	f, _ := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	return f
}

// addEntropy mixes bytes into the kernel's random number generator, credits them in full, and makes it reseed at once
// (random(4): RNDADDENTROPY, RNDRESEEDCRNG).
func addEntropy(f *os.File, entropy []byte) error {
	if f == nil {
		return errors.New("add entropy: the guest had no /dev/urandom when the agent started")
	}
	// struct rand_pool_info: int entropy_count (bits), int buf_size (bytes), then the bytes.
	pool := binary.NativeEndian.AppendUint32(nil, uint32(8*len(entropy))) // at most maxEntropy
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(entropy)))   // at most maxEntropy
	pool = append(pool, entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return os.NewSyscallError("add entropy", errno)
	}
	// Without it a generator that was seeded before goes on as it was for up to five minutes. Kernels before 4.14 don't know
	// it (EINVAL), and one that was never seeded (ENODATA) takes the above for its seed.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0)
	if errno != 0 && errno != unix.EINVAL && errno != unix.ENODATA {
		return os.NewSyscallError("reseed", errno)
	}
	return nil
}

const rndReseedCRNG = 0x5207 // linux/random.h

// identify sets host name and machine id in the kernel and below root. Empty values leave things as they are.
func identify(root, hostname, machineID string) error {
	if hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return os.NewSyscallError("sethostname", err)
		}
		if err := writeHostname(root, hostname); err != nil {
			return err
		}
	}
	if machineID == "" {
		return nil
	}
	if err := replaceFile(filepath.Join(root, "etc/machine-id"), machineID+"\n", 0o444); err != nil {
		return err
	}
	// In most images it is a link to the other.
	dbus := filepath.Join(root, "var/lib/dbus/machine-id")
	if info, err := os.Lstat(dbus); err != nil || !info.Mode().IsRegular() {
		return nil //nolint:nilerr // nothing to replace
	}
	return replaceFile(dbus, machineID+"\n", 0o444)
}

// maxHosts bounds what is kept of an image's hosts file, in bytes.
const maxHosts = 1 << 20

// writeHostname writes /etc/hostname and /etc/hosts.
func writeHostname(root, hostname string) error {
	if err := replaceFile(filepath.Join(root, "etc/hostname"), hostname+"\n", 0o644); err != nil {
		return err
	}
	path := filepath.Join(root, "etc/hosts")
	var old []byte
	// What is no file, or a link that leads to none, has nothing to keep.
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() <= maxHosts {
		if old, err = os.ReadFile(path); err != nil {
			return fmt.Errorf("read the hosts file: %w", err)
		}
	}
	return replaceFile(path, hostsFile(string(old), hostname), 0o644)
}

// hostsFile gives the guest's own name the address that Debian gives it, and keeps what else is in the file.
func hostsFile(old, hostname string) string {
	const own = "127.0.1.1"
	var b strings.Builder
	local := false
	for line := range strings.Lines(old) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[0] == own {
			continue
		}
		local = local || len(fields) > 1 && fields[0] == "127.0.0.1"
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	if !local {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	b.WriteString(own + "\t" + hostname + "\n")
	return b.String()
}

// resolvConf is a resolv.conf(5) with these name servers.
func resolvConf(servers []netip.Addr) string {
	var b strings.Builder
	for _, a := range servers {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	return b.String()
}

// replaceFile writes a file of the identity; a symbolic link of that name is replaced, not followed. A file that is there is
// written over, which costs a guest that was just restored a third of what a new one does: ext4 flushes a file that takes the
// place of another one. A crash in the midst of it does no harm, for each boot writes these files anew.
func replaceFile(path, content string, mode fs.FileMode) error {
	if writeOver(path, content, mode) == nil {
		return nil
	}
	if err := ensureDir(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".banger"
	_ = os.Remove(tmp)
	if err := os.WriteFile(tmp, []byte(content), mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_ = unix.Rmdir(path) // an empty directory of that name, as container engines leave it
	if err := os.Rename(tmp, path); err != nil {
		// A bind mount over the file can't be replaced, only written.
		_ = os.Remove(tmp)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

// writeOver gives an ordinary file with this mode, and no other name, another content.
func writeOver(path, content string, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Mode != unix.S_IFREG|uint32(mode) || st.Nlink != 1 || int(st.Uid) != os.Geteuid()) {
		err = fs.ErrInvalid
	}
	if err == nil {
		_, err = f.WriteString(content)
	}
	if err == nil && st.Size > int64(len(content)) {
		err = f.Truncate(int64(len(content)))
	}
	return errors.Join(err, f.Close())
}
