package sshserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/fault"
)

// Everybody who comes first at the same time gets the same keys, and only their owner can read them.
func TestOpenKeysAtOnce(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "ssh")
	const many = 8
	keys := make([]*Keys, many)
	errs := make([]error, many)
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() { keys[i], errs[i] = OpenKeys(dir, "*.vm") })
	}
	all.Wait()
	for i := range many {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !bytes.Equal(keys[i].User.Marshal(), keys[0].User.Marshal()) ||
			!bytes.Equal(keys[i].Host.PublicKey().Marshal(), keys[0].Host.PublicKey().Marshal()) {
			t.Error("two have different keys")
		}
	}
	for name, mode := range map[string]os.FileMode{".": 0o700, userKey: 0o600, hostKey: 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	known, err := os.ReadFile(keys[0].KnownHosts())
	if err != nil || !strings.HasPrefix(string(known), "*.vm ssh-ed25519 ") {
		t.Errorf("known hosts: %q, %v", known, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("there is %v, %v", entries, err)
	}
}

// What a killed process or a careless user left is put right; what can't be is told of.
func TestOpenKeysMends(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{userKey + ".new": "half", knownHosts: "evil.vm ssh-ed25519 AAAA\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := OpenKeys(dir, "*.vm")
	if err != nil {
		t.Fatal(err)
	}
	if known, err := os.ReadFile(keys.KnownHosts()); err != nil || strings.Contains(string(known), "evil") {
		t.Errorf("known hosts: %q, %v", known, err)
	}
	if err := os.Chmod(keys.Identity(), 0o644); err != nil { //nolint:gosec // the mistake to be mended
		t.Fatal(err)
	}
	if _, err := OpenKeys(dir, "*.vm"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(keys.Identity()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v, %v", info, err)
	}
	if err := os.WriteFile(keys.Identity(), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(dir, "*.vm"); !fault.Is(err, fault.Corrupt) || !strings.Contains(fault.HintOf(err), "rm ") {
		t.Errorf("a damaged key: %v", err)
	}
}
