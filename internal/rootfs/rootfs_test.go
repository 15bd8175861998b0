package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

type item struct {
	tar.Header
	content string
}

func archive(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		h := it.Header
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Size = int64(len(it.content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, it.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := hostexec.Look(name, "e2fsprogs")
	if err != nil {
		t.Skip(err)
	}
	return path
}

func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	out, err := exec.Command(tool(t, "debugfs"), "-R", command, image).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %s: %v\n%s", command, err, out)
	}
	return string(out)
}

func fsck(t *testing.T, image string) {
	t.Helper()
	if out, err := exec.Command(tool(t, "e2fsck"), "-fn", image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func TestConvertKeepsEverything(t *testing.T) {
	t.Parallel()
	big := make([]byte, 3<<20+17)
	if _, err := rand.Read(big[:1<<20]); err != nil { // the rest is a hole
		t.Fatal(err)
	}
	big[len(big)-1] = 1
	at := time.Unix(1700000000, 0)
	xattr := map[string]string{
		"SCHILY.xattr.user.color": "blue", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00" + strings.Repeat("\x00", 12),
		"SCHILY.xattr.user.long": strings.Repeat("x", 2000),
	}
	long := strings.Repeat("d", 200) + "/" + strings.Repeat("f", 255)
	data := archive(t,
		item{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}},
		item{Header: tar.Header{Name: "./tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}},
		item{Header: tar.Header{Name: "/bin/su", Mode: 0o4755, Uid: 0, Gid: 0, ModTime: at}, content: "program"},
		item{Header: tar.Header{Name: "big", Uid: 100000, Gid: 65534}, content: string(big)},
		item{Header: tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "/bin/su"}},
		item{Header: tar.Header{Name: "short", Typeflag: tar.TypeSymlink, Linkname: "/etc/../bin/su"}},
		item{Header: tar.Header{Name: "far", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("a/", 100) + "x"}},
		item{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		item{Header: tar.Header{Name: "dev/disk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 259, Devminor: 70000, Gid: 6}},
		item{Header: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}},
		item{Header: tar.Header{Name: "attrs", PAXRecords: xattr}, content: "x"},
		item{Header: tar.Header{Name: long}, content: "deep"},
		item{Header: tar.Header{Name: "empty"}},
		item{Header: tar.Header{Name: ".wh.kept", Mode: 0o600}, content: "not a whiteout here"},
	)
	image := filepath.Join(t.TempDir(), "image.ext4")
	var seen []string
	info, err := Convert(t.Context(), bytes.NewReader(data), image, Options{
		Visit: func(h *tar.Header) { seen = append(seen, h.Name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, image)
	if digest, err := HashFile(t.Context(), image); err != nil || digest != info.Digest {
		t.Errorf("digest %s, file has %s (%v)", info.Digest, digest, err)
	}
	st, err := os.Stat(image)
	if err != nil || st.Size() != info.Size || st.Mode().Perm() != 0o444 || info.Size%4096 != 0 {
		t.Errorf("file is %v, info %+v", st, info)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 2<<20 {
		t.Errorf("image takes %d bytes: not sparse", used)
	}
	if info.Entries != 14 || seen[2] != "bin/su" {
		t.Errorf("entries %d, seen %q", info.Entries, seen)
	}
	for path, wants := range map[string][]string{
		"/tmp":      {"directory", "Mode:  01777"},
		"/bin/su":   {"regular", "Mode:  04755", "Links: 2", "Size: 7", "mtime: 0x6553f100"},
		"/hard":     {"Mode:  04755", "Links: 2"},
		"/big":      {"User: 100000", "Group: 65534", "Size: 3145745"},
		"/short":    {"symlink", `Fast link dest: "/etc/../bin/su"`},
		"/far":      {"symlink", "Size: 201"},
		"/dev/null": {"character special", "Mode:  0666", "major/minor number: 01:03"},
		"/dev/disk": {"block special", "major/minor number: 259:70000", "Group:     6"},
		"/pipe":     {"FIFO"},
		"/attrs":    {`user.color (4) = "blue"`, "security.capability (20)", "user.long (2000)"},
		"/empty":    {"Size: 0"},
		"/.wh.kept": {"regular"},
	} {
		out := debugfs(t, image, "stat "+path)
		for _, want := range wants {
			if !regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(want), " ", " *")).MatchString(out) {
				t.Errorf("%s: no %q in\n%s", path, want, out)
			}
		}
	}
	back := filepath.Join(t.TempDir(), "big")
	debugfs(t, image, "dump /big "+back)
	if got, _ := os.ReadFile(back); !bytes.Equal(got, big) {
		t.Error("content of /big differs")
	}
	if out := debugfs(t, image, "cat /"+long); !strings.HasSuffix(out, "deep") {
		t.Errorf("long name: %q", out)
	}
}

func TestConvertManyGroups(t *testing.T) {
	t.Parallel()
	const size = 140 << 20 // a group has 128 MiB
	pr, pw := io.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		err := w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Size: size})
		zeros := make([]byte, 1<<20)
		for n := 0; n < size && err == nil; n += len(zeros) {
			_, err = w.Write(zeros)
		}
		for i := 0; i < 1000 && err == nil; i++ {
			err = w.WriteHeader(&tar.Header{Name: "d/" + strconv.Itoa(i), Typeflag: tar.TypeReg})
		}
		pw.CloseWithError(errors.Join(err, w.Close()))
	}()
	image := filepath.Join(t.TempDir(), "image.ext4")
	if _, err := Convert(t.Context(), pr, image, Options{}); err != nil {
		t.Fatal(err)
	}
	fsck(t, image)
}

func TestConvertRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		items []item
		opts  Options
		kind  fault.Kind
		text  string
	}{
		{"traversal", []item{{Header: tar.Header{Name: "a/../../etc/passwd"}}}, Options{}, fault.Invalid, "out of the root"},
		{"link out", []item{{Header: tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "../x"}}}, Options{}, fault.Invalid, "out of the root"},
		{"link to nothing", []item{{Header: tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "x"}}}, Options{}, fault.Invalid, "not found"},
		{"through a symlink", []item{
			{Header: tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}}, {Header: tar.Header{Name: "l/passwd"}},
		}, Options{}, fault.Invalid, "path not found"},
		{"long name", []item{{Header: tar.Header{Name: strings.Repeat("n", 256)}}}, Options{}, fault.Invalid, "longer than 255"},
		{"file as root", []item{{Header: tar.Header{Name: "."}}}, Options{}, fault.Invalid, "root is not a directory"},
		{"device number", []item{{Header: tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 4096}}}, Options{}, fault.Invalid, "device number"},
		{"owner", []item{{Header: tar.Header{Name: "f", Uid: 1 << 33}}}, Options{}, fault.Invalid, "out of range"},
		{"attributes", []item{{Header: tar.Header{Name: "f", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 4000)}}}}, Options{}, fault.Invalid, "attributes"},
		{"twice", []item{{Header: tar.Header{Name: "f"}, content: "a"}, {Header: tar.Header{Name: "f"}, content: "b"}}, Options{}, fault.Invalid, "overwrite"},
		{"directory over file", []item{{Header: tar.Header{Name: "f"}}, {Header: tar.Header{Name: "f", Typeflag: tar.TypeDir}}}, Options{}, fault.Invalid, "cannot replace"},
		{"entries", []item{{Header: tar.Header{Name: "a"}}, {Header: tar.Header{Name: "b"}}}, Options{MaxEntries: 1}, fault.Invalid, "more than 1 entries"},
		{"size", []item{{Header: tar.Header{Name: "a"}, content: strings.Repeat("x", 200000)}}, Options{MaxSize: 100000}, fault.Invalid, "fit"},
		{"metadata", []item{{Header: tar.Header{Name: "a"}, content: strings.Repeat("x", 8192)}}, Options{MaxSize: 16384}, fault.Invalid, "fit"},
		{"limit", nil, Options{MaxSize: 1 << 50}, fault.Invalid, "maximum image size"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "image.ext4")
			_, err := Convert(t.Context(), bytes.NewReader(archive(t, tt.items...)), image, tt.opts)
			if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%v), want %v: %s", err, fault.KindOf(err), tt.kind, tt.text)
			}
			if _, err := os.Stat(image); !os.IsNotExist(err) {
				t.Errorf("the image was left behind: %v", err)
			}
		})
	}
}

func TestConvertDamaged(t *testing.T) {
	t.Parallel()
	data := archive(t, item{Header: tar.Header{Name: "a"}, content: strings.Repeat("x", 10000)})
	for name, damaged := range map[string][]byte{"cut": data[:5000], "garbage": bytes.Repeat([]byte("junk"), 1000)} {
		image := filepath.Join(t.TempDir(), "image.ext4")
		if _, err := Convert(t.Context(), bytes.NewReader(damaged), image, Options{}); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := os.Stat(image); !os.IsNotExist(err) {
			t.Errorf("%s: the image was left behind", name)
		}
	}
}

func TestConvertGlobalHeader(t *testing.T) {
	t.Parallel()
	data := archive(t, item{Header: tar.Header{Name: "a"}, content: "x"})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "c"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	info, err := Convert(t.Context(), io.MultiReader(&b, bytes.NewReader(data)), filepath.Join(t.TempDir(), "i"), Options{})
	if err != nil || info.Entries != 1 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestConvertEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	image := filepath.Join(t.TempDir(), "image.ext4")
	if _, err := Convert(ctx, bytes.NewReader(archive(t)), image, Options{}); !errors.Is(err, reason) {
		t.Errorf("canceled: got %v", err)
	}
	if _, err := Convert(t.Context(), io.MultiReader(bytes.NewReader(archive(t)[:100]), failing{reason}), image, Options{}); !errors.Is(err, reason) {
		t.Errorf("source failed: got %v", err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Convert(t.Context(), bytes.NewReader(archive(t)), image, Options{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("existing file: got %v", err)
	}
	if _, err := os.Stat(image); err != nil {
		t.Error("a file that was there is gone")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestSparseFile(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // its content is read back
	s := &sparseFile{f: f}
	want := make([]byte, 64<<10)
	write := func(at int, p []byte) {
		if _, err := s.Seek(int64(at), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		copy(want[at:], p)
	}
	ones := bytes.Repeat([]byte{1}, 9000)
	write(100, ones)
	write(20000, make([]byte, 30000))
	write(50000, ones[:10])
	write(4000, make([]byte, 5000)) // zeros over data must be written
	write(len(want)-1, []byte{0})
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(f.Name()); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
}

func TestBlank(t *testing.T) {
	t.Parallel()
	tool(t, "mkfs.ext4")
	path := filepath.Join(t.TempDir(), "disk")
	const uuid = "0f3b3c1e-7a52-4c83-9f0e-2d8a3f1b5c6d"
	began := time.Now()
	if err := Blank(t.Context(), path, 4<<30, BlankOptions{Label: "banger-work", UUID: uuid}); err != nil {
		t.Fatal(err)
	}
	t.Logf("4 GiB in %v", time.Since(began))
	st, err := os.Stat(path)
	if err != nil || st.Size() != 4<<30 || st.Mode().Perm() != 0o600 {
		t.Fatalf("disk is %v, %v", st, err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 8<<20 {
		t.Errorf("disk takes %d bytes", used)
	}
	if out := debugfs(t, path, "show_super_stats -h"); !strings.Contains(out, uuid) || !strings.Contains(out, "banger-work") {
		t.Errorf("label or UUID missing:\n%s", out)
	}
	if err := Blank(t.Context(), path, 4<<30, BlankOptions{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	for _, bad := range []struct {
		size int64
		opts BlankOptions
	}{{4097 << 12, BlankOptions{Label: "a b"}}, {1 << 20, BlankOptions{}}, {8<<20 + 1, BlankOptions{}}} {
		if err := Blank(t.Context(), filepath.Join(t.TempDir(), "x"), bad.size, bad.opts); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
	gone := filepath.Join(t.TempDir(), "x")
	if err := Blank(t.Context(), gone, 64<<20, BlankOptions{UUID: "nonsense"}); err == nil {
		t.Error("a bad UUID was accepted")
	} else if _, err := os.Stat(gone); !os.IsNotExist(err) {
		t.Error("the disk of a failed call was left behind")
	}
}

// FuzzConvert wants an error or an image that e2fsck has nothing to say about; never a panic.
func FuzzConvert(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Size: 3, Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}})
	_, _ = w.Write([]byte("abc"))
	_ = w.WriteHeader(&tar.Header{Name: "c", Typeflag: tar.TypeLink, Linkname: "a/b"})
	_ = w.WriteHeader(&tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: "c"})
	_ = w.Close()
	f.Add(b.Bytes())
	f.Add([]byte{})
	check, lookErr := hostexec.Look("e2fsck", "e2fsprogs")
	f.Fuzz(func(t *testing.T, data []byte) {
		image := filepath.Join(t.TempDir(), "i")
		_, err := Convert(t.Context(), bytes.NewReader(data), image, Options{MaxSize: 32 << 20, MaxEntries: 1000})
		if err != nil || lookErr != nil {
			return
		}
		if out, err := exec.Command(check, "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
	})
}
