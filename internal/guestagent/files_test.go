package guestagent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"banger/internal/fault"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/bash\nbroken line\nbad:x:x:0::/:/bin/sh\n" +
		"ann:x:1000:1000::/home/ann:\n42:x:7:7::/:/bin/sh\n"
	testGroup = "root:x:0:\nann:x:1000:\ndocker:x:999:bob,ann\nsudo:x:27:ann\n"
)

func TestLookupUser(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		want user
		kind fault.Kind
	}{
		"":           {want: user{name: "root", home: "/root", shell: "/bin/bash"}},
		"ann":        {want: user{name: "ann", uid: 1000, gid: 1000, groups: []uint32{999, 27}, home: "/home/ann", shell: "/bin/sh"}},
		"1000":       {want: user{name: "ann", uid: 1000, gid: 1000, groups: []uint32{999, 27}, home: "/home/ann", shell: "/bin/sh"}},
		"ann:docker": {want: user{name: "ann", uid: 1000, gid: 999, home: "/home/ann", shell: "/bin/sh"}},
		"5:6":        {want: user{name: "5", uid: 5, gid: 6, home: "/", shell: "/bin/sh"}},
		"42":         {want: user{name: "42", uid: 7, gid: 7, home: "/", shell: "/bin/sh"}}, // a name goes before a number
		"bad":        {kind: fault.Invalid}, "ann:none": {kind: fault.Invalid}, "-1": {kind: fault.Invalid}, "4294967295": {kind: fault.Invalid},
	}
	for spec, c := range cases {
		got, err := lookupUser(spec, testPasswd, testGroup)
		if c.kind != fault.Internal {
			if !fault.Is(err, c.kind) {
				t.Errorf("%q: %+v, %v", spec, got, err)
			}
			continue
		}
		if err != nil || got.name != c.want.name || got.uid != c.want.uid || got.gid != c.want.gid ||
			!slices.Equal(got.groups, c.want.groups) || got.home != c.want.home || got.shell != c.want.shell {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, c.want)
		}
	}
	if root, err := lookupUser("root", "", ""); err != nil || root.shell != "/bin/sh" {
		t.Errorf("root in an image without users: %+v, %v", root, err)
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("ann:docker", testPasswd, testGroup)
	f.Add("0", ":::::::", ":::")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		if u, err := lookupUser(spec, passwd, group); err == nil && (u.home == "" || u.shell == "") {
			t.Fatalf("%+v", u)
		}
	})
}

func TestHostsFile(t *testing.T) {
	t.Parallel()
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, c := range map[string]struct{ old, want string }{
		"none":       {"", local + "127.0.1.1\tme\n"},
		"kept":       {"127.0.0.1 localhost\n1.2.3.4 other", "127.0.0.1 localhost\n1.2.3.4 other\n127.0.1.1\tme\n"},
		"other name": {"# x\n127.0.0.1 localhost\n127.0.1.1 old old.lan\n", "# x\n127.0.0.1 localhost\n127.0.1.1\tme\n"},
	} {
		got := hostsFile(c.old, "me")
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if again := hostsFile(got, "me"); again != got {
			t.Errorf("%s: not the same the second time: %q", name, again)
		}
	}
}

func TestReplaceFileDoesNotFollowLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link, target := filepath.Join(dir, "etc", "resolv.conf"), filepath.Join(dir, "target")
	if err := replaceFile(link, "first", 0o644); err != nil { // makes the directory
		t.Fatal(err)
	}
	_ = os.Remove(link)
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(link, resolvConf(addrs("10.0.2.3")), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(link); string(b) != "nameserver 10.0.2.3\n" {
		t.Errorf("content %q", b)
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("the link was followed")
	}
}

func TestFindDisks(t *testing.T) {
	t.Parallel()
	sys := t.TempDir()
	add := func(device, serial string) {
		if err := os.MkdirAll(filepath.Join(sys, device), 0o755); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(sys, device, "serial"), []byte(serial), 0o644); err != nil {
			t.Error(err)
		}
	}
	add("vda", "work\n")
	if _, err := findDisks(sys, "base", 20*time.Millisecond); err == nil {
		t.Error("a missing disk was found")
	}
	time.AfterFunc(30*time.Millisecond, func() { add("vdb", "base") })
	got, err := findDisks(sys, "base", 10*time.Second)
	if err != nil || got["base"] != "/dev/vdb" || got["work"] != "/dev/vda" {
		t.Errorf("found %v, %v", got, err)
	}
}

func TestQuietSystemd(t *testing.T) {
	t.Parallel()
	for _, udev := range []bool{true, false} {
		root := t.TempDir()
		if udev {
			path := filepath.Join(root, "usr/lib/systemd/systemd-udevd")
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := quietSystemd(root); err != nil {
				t.Fatal(err)
			}
		}
		_, err := os.Readlink(filepath.Join(root, "run/systemd/system/serial-getty@ttyS0.service"))
		if masked := err == nil; masked == udev {
			t.Errorf("udev %v: the getty is masked: %v", udev, masked)
		}
	}
}

func TestSeedCopiesATree(t *testing.T) {
	t.Parallel()
	from, to := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(from, ".profile"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(from, "d", "e"), 0o750); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a crash makes it happen again
		if err := copyTree(from, to); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(to, ".profile"))
	if err != nil || info.Mode().Perm() != 0o640 || !isDir(filepath.Join(to, "d", "e")) {
		t.Errorf("%v, %v", info, err)
	}
}
