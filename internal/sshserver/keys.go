package sshserver

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// Names within the directory of [OpenKeys].
const (
	userKey    = "id_ed25519"
	hostKey    = "host_ed25519"
	knownHosts = "known_hosts"
)

// Keys are what client and server prove themselves to each other with: both are the user's own.
type Keys struct {
	Host ssh.Signer    // of the server, for every VM: what answers is banger, not the guest
	User ssh.PublicKey // of the client
	Dir  string
}

// Identity is the path of the client's private key.
func (k *Keys) Identity() string { return filepath.Join(k.Dir, userKey) }

// KnownHosts is the path of the file by which a client knows the server.
func (k *Keys) KnownHosts() string { return filepath.Join(k.Dir, knownHosts) }

// OpenKeys returns the keys in a directory, and makes what is missing: the directory (0700), the client's key (0600), the server's,
// and the file by which the client knows the server under the names of a pattern, as in "*.vm". It may be called concurrently, also
// by several processes; one that is killed leaves nothing that is half.
func OpenKeys(dir, pattern string) (*Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of SSH keys: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of SSH keys: %w", err)
	}
	defer lock.Close() //nolint:errcheck // a directory
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock the directory of SSH keys: %w", err)
	}
	k := &Keys{Dir: dir}
	user, err := openKey(k.Identity())
	if err != nil {
		return nil, err
	}
	if k.Host, err = openKey(filepath.Join(dir, hostKey)); err != nil {
		return nil, err
	}
	k.User = user.PublicKey()
	if err := ensure(k.Identity()+".pub", ssh.MarshalAuthorizedKey(k.User), 0o644); err != nil {
		return nil, err
	}
	line := append([]byte(pattern+" "), ssh.MarshalAuthorizedKey(k.Host.PublicKey())...)
	return k, ensure(k.KnownHosts(), line, 0o644)
}

// openKey reads a private key, or makes it.
func openKey(path string) (ssh.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = newKey(); err == nil {
			err = replace(path, text, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make an SSH key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "read the SSH key %s: %w", path, err).WithHint("remove it, and a new one will be made: rm %s", path)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(path, 0o600); err != nil { // ssh would refuse it
			return nil, fmt.Errorf("keep the SSH key to its owner: %w", err)
		}
	}
	return signer, nil
}

func newKey() ([]byte, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "banger")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

// ensure makes a file have a content.
func ensure(path string, content []byte, mode fs.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
		return nil
	}
	return replace(path, content, mode)
}

// replace writes a file such that it is there whole or not at all. The caller has the directory's lock, so that the name of the
// unfinished one can be fixed: what a killed process leaves is overwritten.
func replace(path string, content []byte, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	unfinished := path + ".new"
	_ = os.Remove(unfinished)
	f, err := os.OpenFile(unfinished, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(unfinished)
		return err
	}
	return os.Rename(unfinished, path)
}
