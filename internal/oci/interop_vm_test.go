//go:build vm

package oci_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"

	"banger/internal/ext4"
	"banger/internal/hostexec"
	"banger/internal/oci"
	"banger/internal/rootfs"
)

// TestOtherPeoplesTools pulls images that umoci and buildah have made, and skopeo has pushed to a registry, and
// compares what became of them with what umoci unpacks.
func TestOtherPeoplesTools(t *testing.T) {
	for _, program := range []string{"umoci", "buildah", "skopeo"} {
		if _, err := hostexec.Look(program, program); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("umoci needs root to make devices and give files away")
	}
	work := t.TempDir()
	layout := filepath.Join(work, "layout")
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", layout+":1")
	for i, change := range []func(t *testing.T, root string){firstLayer, secondLayer, thirdLayer} {
		bundle := filepath.Join(work, fmt.Sprint("bundle", i))
		run(t, "umoci", "unpack", "--image", layout+":1", bundle)
		change(t, filepath.Join(bundle, "rootfs"))
		run(t, "umoci", "repack", "--image", layout+":1", bundle)
	}
	fromBuildah(t, work, layout)
	addr := serveRegistry(t, work)
	for _, tag := range []string{"1", "buildah"} {
		t.Run(tag, func(t *testing.T) {
			dir := t.TempDir()
			source := "oci:" + layout + ":" + tag
			run(t, "umoci", "unpack", "--image", layout+":"+tag, filepath.Join(dir, "bundle"))
			want := onDisk(t, filepath.Join(dir, "bundle", "rootfs"))
			if len(want) < 10 {
				t.Fatalf("only %d files", len(want))
			}
			skopeo := []string{"copy", "--insecure-policy", "--dest-tls-verify=false", source}
			run(t, "skopeo", append(skopeo, "docker://"+addr+"/app:"+tag)...)
			run(t, "skopeo", append(skopeo, "docker-archive:"+filepath.Join(dir, "docker.tar")+":app:"+tag)...)
			run(t, "skopeo", append(skopeo, "oci-archive:"+filepath.Join(dir, "oci.tar")+":"+tag)...)
			c := oci.New(oci.Options{CacheDir: filepath.Join(dir, "cache"), Keychain: authn.NewMultiKeychain()})
			for _, ref := range []string{
				addr + "/app:" + tag, source, "docker-archive:" + filepath.Join(dir, "docker.tar"), "oci-archive:" + filepath.Join(dir, "oci.tar"),
			} {
				compare(t, ref, want, converted(t, c, ref))
			}
		})
	}
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

// must ends the test with the first error.
func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, root, name, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600), os.Chmod(path, mode))
	return path
}

func firstLayer(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	put(t, root, "bin/su", "program", 0o755|fs.ModeSetuid)
	put(t, root, "usr/lib/libx.so", strings.Repeat("x", 100000), 0o644)
	put(t, root, "etc/gone", "1", 0o644)
	put(t, root, "etc/changed", "1", 0o644)
	put(t, root, "opt/old/a", "1", 0o644)
	put(t, root, "opt/old/b/c", "1", 0o644)
	put(t, root, "was-dir/x", "1", 0o644)
	put(t, root, "was-file", "1", 0o644)
	put(t, root, strings.Repeat("d", 200)+"/"+strings.Repeat("f", 255), "long", 0o644)
	put(t, root, "strange \xff\n name", "1", 0o600)
	owned := put(t, root, "home/u/file", "mine", 0o640)
	must(t,
		os.Symlink("usr/lib", at("lib")), os.Symlink("/no/where", at("dangling")), os.Symlink(strings.Repeat("l/", 60), at("far")),
		os.Link(at("etc/changed"), at("etc/linked")), os.Link(at("usr/lib/libx.so"), at("usr/lib/libx.so.1")),
		os.Mkdir(at("dev"), 0o755), unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(at("dev/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70))), unix.Mkfifo(at("dev/pipe"), 0o600),
		os.Mkdir(at("tmp"), 0o755), os.Chmod(at("tmp"), 0o777|fs.ModeSticky),
		os.Lchown(owned, 100000, 65534), os.Lchown(at("lib"), 5, 6),
		unix.Setxattr(at("bin"), "user.note", []byte("a directory"), 0),
		unix.Setxattr(owned, "user.color", []byte("blue"), 0),
		unix.Setxattr(at("usr/lib/libx.so"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		os.Chtimes(owned, time.Unix(1500000000, 0), time.Unix(1500000000, 0)), os.Chtimes(at("tmp"), time.Unix(1400000000, 0), time.Unix(1400000000, 0)),
	)
}

func secondLayer(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.Remove(at("etc/gone")), os.RemoveAll(at("opt/old")), os.RemoveAll(at("was-dir")), os.Remove(at("was-file")), os.Remove(at("dangling")))
	put(t, root, "was-dir", "now a file", 0o644)
	put(t, root, "was-file/x", "now a directory", 0o644)
	put(t, root, "opt/old/new", "2", 0o644)
	put(t, root, "usr/lib/liby.so", "2", 0o755)
	must(t, os.Link(at("usr/lib/liby.so"), at("usr/lib/liby.so.2")), os.Chmod(at("home/u/file"), 0o400))
}

func thirdLayer(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.Remove(at("was-dir")), os.Mkdir(at("was-dir"), 0o700), os.Remove(at("dev/pipe")), os.Remove(at("lib")))
	put(t, root, "lib/own", "3", 0o644)
}

// fromBuildah adds an image that buildah has made of a directory to the layout.
func fromBuildah(t *testing.T, work, layout string) {
	t.Helper()
	tree := filepath.Join(work, "tree")
	for i := range 20 {
		put(t, tree, fmt.Sprintf("app/d%d/file", i), strings.Repeat("b", i*1000), 0o644)
	}
	must(t, os.Link(filepath.Join(tree, "app/d1/file"), filepath.Join(tree, "app/link")), os.Symlink("app/d1", filepath.Join(tree, "sym")))
	storage := []string{"--root", filepath.Join(work, "storage"), "--runroot", filepath.Join(work, "run"), "--storage-driver", "vfs"}
	buildah := func(args ...string) { run(t, "buildah", append(slices.Clone(storage), args...)...) }
	buildah("from", "--name", "work", "scratch")
	buildah("add", "work", tree, "/")
	buildah("commit", "work", "first")
	put(t, tree, "app/d2/file", "again", 0o600)
	buildah("add", "work", filepath.Join(tree, "app/d2/file"), "/app/d2/file")
	buildah("config", "--cmd", "/app/run", "work")
	buildah("commit", "work", "oci:"+layout+":buildah")
	buildah("rm", "work")
}

// serveRegistry runs a registry until the test ends, and returns its address: Debian's if it is installed (its package
// starts a service that listens to everybody, so that tests don't install it), else one in this process.
func serveRegistry(t *testing.T, work string) string {
	t.Helper()
	if _, err := hostexec.Look("docker-registry", "docker-registry"); err != nil {
		server := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))))
		t.Cleanup(server.Close)
		return strings.TrimPrefix(server.URL, "http://")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	config := put(t, work, "registry.yml", "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "+filepath.Join(work, "registry")+
		"}}\nhttp: {addr: \""+addr+"\"}\n", 0o600)
	must(t, l.Close())
	p, err := hostexec.Start(hostexec.Cmd{Path: "docker-registry", Args: []string{"serve", config}})
	must(t, err)
	t.Cleanup(func() { p.Kill(); <-p.Done() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			must(t, resp.Body.Close())
			return addr
		}
		select {
		case <-p.Done():
			t.Fatalf("the registry has ended: %v", p.Err())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the registry doesn't answer: %v", err)
		}
	}
}

// facts says everything of a file that must be kept.
func facts(mode, uid, gid uint32, mtime, size int64, major, minor uint32, detail string, xattrs map[string]string) string {
	s := fmt.Sprintf("mode %06o owner %d:%d time %d", mode, uid, gid, mtime)
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf(" size %d content %s", size, detail)
	case unix.S_IFLNK:
		s += " -> " + detail
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" device %d,%d", major, minor)
	}
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		s += fmt.Sprintf(" %s=%x", name, xattrs[name])
	}
	return s
}

// groups adds to each file the other names it has.
func groups(all map[string]string, names map[uint64][]string) map[string]string {
	for _, group := range names {
		slices.Sort(group)
		for _, name := range group {
			if len(group) > 1 {
				all[name] += " names " + strings.Join(group, " ")
			}
		}
	}
	return all
}

func hash(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, r)
	must(t, err)
	return fmt.Sprintf("%.8x", h.Sum(nil))
}

func onDisk(t *testing.T, root string) map[string]string {
	t.Helper()
	all, names := map[string]string{}, map[uint64][]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		name := strings.TrimPrefix(path[len(root):], "/")
		var st syscall.Stat_t
		must(t, syscall.Lstat(path, &st))
		detail := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(path)
			must(t, err)
			detail = hash(t, f)
			must(t, f.Close())
		case unix.S_IFLNK:
			detail, err = os.Readlink(path)
			must(t, err)
		}
		all[name] = facts(st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Size, unix.Major(st.Rdev), unix.Minor(st.Rdev), detail, xattrsOf(t, path))
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			names[st.Ino] = append(names[st.Ino], name)
		}
		return nil
	})
	must(t, err)
	return groups(all, names)
}

func xattrsOf(t *testing.T, path string) map[string]string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	must(t, err)
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		must(t, err)
		all[name] = string(value[:n])
	}
	return all
}

// converted opens an image, makes it into a filesystem and reads that.
func converted(t *testing.T, c *oci.Client, ref string) map[string]string {
	t.Helper()
	s, err := c.Open(t.Context(), ref, oci.Platform{})
	must(t, err)
	image := filepath.Join(t.TempDir(), "image.ext4")
	r, w := io.Pipe()
	go func() { w.CloseWithError(s.WriteTar(t.Context(), w, nil)) }()
	info, err := rootfs.Convert(t.Context(), r, image, rootfs.Options{})
	must(t, err, s.Close())
	if path, err := hostexec.Look("e2fsck", "e2fsprogs"); err == nil {
		run(t, path, "-fn", image)
	}
	f, err := os.Open(image)
	must(t, err)
	defer f.Close() //nolint:errcheck // a test
	fsys, err := ext4.Open(f, info.Size)
	must(t, err)
	all, names := map[string]string{}, map[uint64][]string{}
	var visit func(name string, in *ext4.Inode)
	visit = func(name string, in *ext4.Inode) {
		detail := ""
		switch in.Type() {
		case unix.S_IFREG:
			r, err := fsys.Open(in)
			must(t, err)
			detail = hash(t, r)
		case unix.S_IFLNK:
			detail, err = fsys.Readlink(in)
			must(t, err)
		}
		attrs, err := fsys.Xattrs(in)
		must(t, err)
		all[name] = facts(uint32(in.Mode), in.UID, in.GID, in.Mtime.Unix(), in.Size, in.Major, in.Minor, detail, attrs)
		if !in.IsDir() {
			names[uint64(in.Number)] = append(names[uint64(in.Number)], name)
			return
		}
		entries, err := fsys.ReadDir(in)
		must(t, err)
		for _, e := range entries {
			if name == "" && e.Name == "lost+found" {
				continue
			}
			child, err := fsys.Inode(e.Inode)
			must(t, err)
			visit(strings.TrimPrefix(name+"/"+e.Name, "/"), child)
		}
	}
	root, err := fsys.Root()
	must(t, err)
	visit("", root)
	return groups(all, names)
}

func compare(t *testing.T, ref string, want, got map[string]string) {
	t.Helper()
	for name, facts := range want {
		if got[name] != facts {
			t.Errorf("%s: %q is\n     %s\nnot  %s", ref, name, got[name], facts)
		}
	}
	for name, facts := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %q is too much: %s", ref, name, facts)
		}
	}
}
