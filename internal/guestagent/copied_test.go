package guestagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
)

// stale is a system that can't reseed its random numbers until it is mended.
type stale struct {
	hosted

	mended  atomic.Bool
	console string // path of a file
}

func (s *stale) Renew(guestproto.Preamble) error {
	if s.mended.Load() {
		return nil
	}
	return errors.New("no random numbers")
}

func (s *stale) Console() *os.File {
	f, _ := os.OpenFile(s.console, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	return f
}

// A copy of a guest has the random numbers of the original until it is reseeded: it must serve nobody before.
func TestNothingIsServedUnlessReseeded(t *testing.T) {
	t.Parallel()
	host, guest := sockets(t)
	system := &stale{console: filepath.Join(t.TempDir(), "console")}
	go New("hosted", system, newChildren()).Serve(t.Context(), guest) //nolint:errcheck // ends with the test
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, _, err := guestlink.Open(ctx, keepOpen{host}); err == nil {
		t.Fatal("a session was opened")
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		told, _ := os.ReadFile(system.console)
		if strings.Contains(string(told), "no random numbers") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the console says %q, not why nobody is served", told)
		}
	}
	system.mended.Store(true) // the control
	_ = host.SetDeadline(time.Time{})
	s, _, err := guestlink.Open(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if err := guestlink.NewClient(s).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	_ = s.Close()
}

func TestGivenBootIDIsTold(t *testing.T) {
	t.Parallel()
	const id = "11111111-2222-4333-8444-555555555555"
	host, guest := sockets(t)
	go New("hosted", hosted{}, newChildren()).Serve(t.Context(), guest) //nolint:errcheck // ends with the test
	s, first, err := guestlink.Open(t.Context(), keepOpen{host})
	if err != nil {
		t.Fatal(err)
	}
	c := guestlink.NewClient(s)
	for _, bad := range []string{"x", strings.ToUpper("abcdefab-2222-4333-8444-555555555555"), id + "\n"} {
		if err := c.Configure(t.Context(), guestproto.Identity{BootID: bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("Configure with the boot id %q = %v", bad, err)
		}
	}
	if err := c.Configure(t.Context(), guestproto.Identity{BootID: id}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	_ = host.SetDeadline(time.Time{})
	s, second, err := guestlink.Open(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // a test's end
	if second.BootID != id || first.BootID == id {
		t.Errorf("the boot id is %s, and was %s; want %s", second.BootID, first.BootID, id)
	}
}

func TestForgetSecrets(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	gone := []string{
		"etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub", "etc/ssh/ssh_host_rsa_key", "var/lib/systemd/random-seed",
	}
	kept := []string{"etc/ssh/sshd_config", "etc/ssh/ssh_host_key_notes", "root/.ssh/id_ed25519"}
	for _, name := range append(slices.Clone(gone), kept...) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := forgetSecrets(root)
	if want := []string{filepath.Join(root, gone[0]), filepath.Join(root, gone[2])}; err != nil || !slices.Equal(keys, want) {
		t.Errorf("forgetSecrets = %v, %v; want %v", keys, err, want)
	}
	for _, name := range gone {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	for _, name := range kept {
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if keys, err := forgetSecrets(t.TempDir()); len(keys) != 0 || err != nil {
		t.Errorf("forgetSecrets of a root without any = %v, %v", keys, err)
	}
}

func TestMachineIDOfDBus(t *testing.T) {
	t.Parallel()
	const id = "0123456789abcdef0123456789abcdef"
	file, link, none := t.TempDir(), t.TempDir(), t.TempDir()
	for _, root := range []string{file, link} {
		if err := os.MkdirAll(filepath.Join(root, "var/lib/dbus"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(file, "var/lib/dbus/machine-id"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/machine-id", filepath.Join(link, "var/lib/dbus/machine-id")); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{file, link, none} {
		if err := identify(root, "", id); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(root, "etc/machine-id")); string(got) != id+"\n" {
			t.Errorf("machine-id holds %q", got)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(file, "var/lib/dbus/machine-id")); string(got) != id+"\n" {
		t.Errorf("dbus's own file holds %q", got)
	}
	if target, err := os.Readlink(filepath.Join(link, "var/lib/dbus/machine-id")); err != nil || target != "/etc/machine-id" {
		t.Errorf("dbus's link leads to %q, %v", target, err)
	}
	if _, err := os.Lstat(filepath.Join(none, "var")); err == nil {
		t.Error("a root without dbus has its file now")
	}
}

func TestReplaceFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	for name, prepare := range map[string]func(path string) error{
		"nothing":       func(string) error { return nil },
		"longer file":   func(p string) error { return os.WriteFile(p, []byte("a longer content"), 0o644) },
		"shorter file":  func(p string) error { return os.WriteFile(p, []byte("x"), 0o644) },
		"another mode":  func(p string) error { return os.WriteFile(p, []byte("secret"), 0o600) },
		"link":          func(p string) error { return os.Symlink(other, p) },
		"dangling link": func(p string) error { return os.Symlink(filepath.Join(dir, "none"), p) },
		"hard link":     func(p string) error { return os.Link(other, p) },
		"directory":     func(p string) error { return os.Mkdir(p, 0o755) },
		"pipe":          func(p string) error { return unix.Mkfifo(p, 0o644) },
	} {
		if err := os.WriteFile(other, []byte("untouched"), 0o644); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		if err := replaceFile(path, "content\n", 0o644); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: it is now %v, %v", name, info, err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "content\n" {
			t.Errorf("%s: it holds %q, %v", name, text, err)
		}
		if text, err := os.ReadFile(other); err != nil || string(text) != "untouched" {
			t.Errorf("%s: the other file holds %q, %v", name, text, err)
		}
	}
}
