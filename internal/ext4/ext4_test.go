package ext4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
)

// tool returns one of e2fsprogs, which tests compare with.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if path := filepath.Join(dir, name); exec.Command(path, "-V").Run() == nil {
			return path
		}
	}
	t.Skipf("%s is not installed (Debian package e2fsprogs)", name)
	return ""
}

func execute(t testing.TB, stdin, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mkfs makes an image with what is in a directory.
func mkfs(t testing.TB, dir, size string, args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	args = append([]string{"-q", "-F", "-d", dir}, args...)
	execute(t, "", tool(t, "mkfs.ext4"), append(args, image, size)...)
	return image
}

func open(t testing.TB, image string) *FS {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// describe is everything that a walk tells of a file, in one line. mkfs.ext4 keeps 32 bits of the seconds of a time only.
func describe(t testing.TB, f *FS, in *Inode) string {
	t.Helper()
	text := fmt.Sprintf("%o %d:%d links %d mtime %d", in.Mode, in.UID, in.GID, in.Links, uint32(in.Mtime.Unix()))
	switch in.Type() {
	case unix.S_IFREG:
		r, err := f.Open(in)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		n, err := io.Copy(h, r)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf(" size %d sha256 %x", n, h.Sum(nil))
	case unix.S_IFLNK:
		target, err := f.Readlink(in)
		if err != nil {
			t.Fatal(err)
		}
		text += " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		text += fmt.Sprintf(" device %d:%d", in.Major, in.Minor)
	}
	attrs, err := f.Xattrs(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		text += fmt.Sprintf(" %s=%q", name, attrs[name])
	}
	return text
}

// describeHost tells the same of a file of the host.
func describeHost(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%o %d:%d links %d mtime %d", st.Mode, st.Uid, st.Gid, st.Nlink, uint32(st.Mtim.Sec))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf(" size %d sha256 %x", len(p), sha256.Sum256(p))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		text += " -> " + target
	}
	return text + hostXattrs(t, path)
}

func hostXattrs(t testing.TB, path string) (text string) {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return ""
	}
	names := strings.Split(strings.Trim(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return text
}

// source makes a tree with something of everything that needs no privilege, and returns whether it has attributes.
func source(t testing.TB, dir string, xattrBytes int, gap int64) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, content []byte, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, content, 0o600))
		check(os.Chmod(path, mode))
		return path
	}
	write("empty", nil, 0o644)
	write("small", []byte("hello"), 0o640)
	write("inline", bytes.Repeat([]byte("x"), 100), 0o644)
	write("block", bytes.Repeat([]byte("0123456789abcdef"), 256), 0o755)
	write("large", bytes.Repeat([]byte("a line of text that is repeated\n"), 100_000), 0o4755)
	write("d/e/f/g/deep", []byte("x"), 0o644)
	write("bad name \xff\xfe", []byte("not UTF-8"), 0o644)
	write(strings.Repeat("n", 255), []byte("long"), 0o644)
	write("etc/ssl/a=b", []byte("x"), 0o600)
	sparse := write("sparse", []byte("begin"), 0o644)
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	check(err)
	for i := range int64(20) { // enough extents for a tree with two levels, and for all levels of a map of blocks
		_, err = f.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 5000), i*i*gap+3)
		check(err)
	}
	check(errors.Join(f.Truncate(400*gap), f.Close()))
	check(os.Link(filepath.Join(dir, "small"), filepath.Join(dir, "d/hard")))
	check(os.Symlink("small", filepath.Join(dir, "fast")))
	check(os.Symlink("../"+strings.Repeat("long/", 30), filepath.Join(dir, "slow")))
	check(os.Symlink(strings.Repeat("x", 59), filepath.Join(dir, "edge")))
	check(os.Symlink(strings.Repeat("x", 60), filepath.Join(dir, "over")))
	check(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o620))
	many := filepath.Join(dir, "many")
	check(os.Mkdir(many, 0o1777))
	for i := range 1000 {
		check(os.Symlink("t", filepath.Join(many, fmt.Sprintf("entry with a rather long name %d", i))))
	}
	if xattrBytes > 0 && unix.Lsetxattr(filepath.Join(dir, "small"), "user.short", []byte("v\x00w"), 0) == nil {
		check(unix.Lsetxattr(filepath.Join(dir, "block"), "user.long", bytes.Repeat([]byte("v"), xattrBytes), 0))
		check(unix.Lsetxattr(filepath.Join(dir, "d"), "user.of.a.directory", []byte("v"), 0))
		check(unix.Lsetxattr(filepath.Join(dir, "inline"), "user.with.inline.data", bytes.Repeat([]byte("w"), 40), 0))
	}
	for i, name := range []string{"empty", "d/e", "small"} {
		at := time.Unix(int64(i-1)*1<<31+12345, 123_456_789) // before 1970, now, after 2038
		check(os.Chtimes(filepath.Join(dir, name), at, at))
	}
}

func TestSameAsItsSource(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args []string
		attr int // bytes of the largest attribute
	}{
		{"default", nil, 900},
		{"1 KiB blocks", []string{"-b", "1024"}, 500},
		{"32 bit, no checksums", []string{"-O", "^64bit,^metadata_csum"}, 900},
		{"maps of blocks", []string{"-O", "^extent,^64bit,^has_journal", "-b", "1024"}, 500},
		{"inline data", []string{"-O", "inline_data", "-I", "512"}, 900},
		{"attributes in inodes of their own", []string{"-O", "ea_inode"}, 3500},
		{"meta_bg", []string{"-O", "meta_bg,^resize_inode", "-b", "1024"}, 500},
		{"bigalloc", []string{"-O", "bigalloc", "-C", "65536"}, 900},
		{"small inodes", []string{"-I", "128"}, 500},
		{"64 KiB blocks", []string{"-b", "65536"}, 900},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			gap := int64(20_000)
			if tt.name == "maps of blocks" {
				gap = 200_000 // so that a file needs a tree of three levels
			}
			source(t, dir, tt.attr, gap)
			f := open(t, mkfs(t, dir, "400M", tt.args...))
			seen := 0
			var last string
			err := f.Walk(t.Context(), func(path string, in *Inode) error {
				if path == "lost+found" {
					return fs.SkipDir
				}
				seen++
				if path > last {
					last = path
				}
				got, want := describe(t, f, in), describeHost(t, filepath.Join(dir, path))
				if path == "." || path == "sparse" && tt.name == "inline data" { // a lost+found more; mkfs.ext4 shortens it
					return nil
				}
				if got != want {
					t.Errorf("%q:\n got %.300s\nwant %.300s", path, got, want)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			err = filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { want++; return nil })
			if err != nil || seen != want {
				t.Errorf("%d files, want %d, %v", seen, want, err)
			}
		})
	}
}

// What cannot be made without privilege is written into the image by debugfs.
func TestPrivilegedThings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"f", "acl", "cap"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := mkfs(t, dir, "16M")
	debugfs := tool(t, "debugfs")
	script := `mknod null c 1 3
mknod disk b 259 7000
mknod whiteout c 0 0
set_inode_field f uid 70000
set_inode_field f gid 4000000000
set_inode_field f mode 0106755
set_inode_field f mtime 20600101000000
ea_set cap security.capability "\001\000\000\002\000\040\000\000\000\000\000\000\000\000\000\000\000\000\000\000"
ea_set f trusted.overlay.opaque y
`
	execute(t, script, debugfs, "-w", "-f", "-", image)
	f := open(t, image)
	want := map[string]string{
		"null":     "device 1:3",
		"disk":     "device 259:7000",
		"whiteout": "device 0:0",
		"f":        "106755 70000:4000000000",
		"cap":      `security.capability="\x01\x00\x00\x02\x00 `,
	}
	for name, part := range want {
		in, err := f.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(t, f, in); !strings.Contains(got, part) {
			t.Errorf("%s: got %s, want %s", name, got, part)
		}
	}
	in, err := f.Lookup("f")
	if err != nil {
		t.Fatal(err)
	}
	if got := describe(t, f, in); !strings.Contains(got, `trusted.overlay.opaque="y"`) {
		t.Errorf("attribute: %s", got)
	}
	if in.Mtime.Year() != 2060 {
		t.Errorf("year %d", in.Mtime.Year())
	}
	if _, err := f.Lookup("none/x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestTimestamp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		seconds, extra uint32
		want           time.Time
	}{
		{0, 0, time.Unix(0, 0)},
		{0xFFFFFFFF, 999_999_999 << 2, time.Unix(-1, 999_999_999)},
		{0x80000000, 0, time.Unix(-1<<31, 0)},
		{0x80000000, 1, time.Unix(1<<31, 0)}, // the table in Documentation/filesystems/ext4/inodes.rst
		{0x7FFFFFFF, 1 | 7<<2, time.Unix(0x17FFFFFFF, 7)},
		{0x80000000, 2, time.Unix(0x180000000, 0)},
		{0x7FFFFFFF, 3, time.Unix(0x37FFFFFFF, 0)},
		{1, 0xFFFFFFFF, time.Unix(1+(3<<32), 999_999_999)}, // nonsense, but a time
	} {
		if got := timestamp(tt.seconds, tt.extra); !got.Equal(tt.want) {
			t.Errorf("%#x, %#x: got %v, want %v", tt.seconds, tt.extra, got, tt.want)
		}
	}
}

func TestAccessList(t *testing.T) {
	t.Parallel()
	disk := "\x01\x00\x00\x00" + "\x01\x00\x06\x00" + "\x02\x00\x04\x00\x4d\x01\x00\x00" + "\x04\x00\x04\x00"
	call := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x4d\x01\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff"
	for in, want := range map[string]string{disk: call, call: call, disk[:len(disk)-1]: "", disk[:14]: "", "": "", "\x03\x00\x00\x00": ""} {
		got, err := accessList([]byte(in))
		if string(got) != want || (err != nil) != (want == "") {
			t.Errorf("%x: got %x, %v", in, got, err)
		}
	}
}

// A machine that was killed leaves its last changes in the journal only. What e2fsck makes of it is what must be seen.
func TestJournal(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"checksums":          {"-O", "64bit,metadata_csum"},
		"no checksums":       {"-O", "64bit,^metadata_csum"},
		"32 bit":             {"-O", "^64bit,^metadata_csum"},
		"32 bit, checksums":  {"-O", "^64bit,metadata_csum"},
		"1 KiB blocks":       {"-b", "1024"},
		"transactions, many": {"-O", "64bit,metadata_csum"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			blockSize := 4096
			if slices.Contains(args, "1024") {
				blockSize = 1024
			}
			content := bytes.Repeat([]byte("o"), 3*blockSize)
			if err := os.WriteFile(filepath.Join(dir, "f"), content, 0o644); err != nil {
				t.Fatal(err)
			}
			image := mkfs(t, dir, "16M", args...)
			debugfs := tool(t, "debugfs")
			blocks := strings.Fields(execute(t, "", debugfs, "-R", "blocks f", image))
			blocks = blocks[len(blocks)-3:]
			fresh := filepath.Join(t.TempDir(), "fresh")
			// The second block begins like a block of the journal itself: it has to be stored in another way.
			fill := slices.Concat(bytes.Repeat([]byte("n"), blockSize), []byte{0xC0, 0x3B, 0x39, 0x98}, bytes.Repeat([]byte("m"), blockSize-4))
			if err := os.WriteFile(fresh, fill, 0o600); err != nil {
				t.Fatal(err)
			}
			script := "jo\njw -b " + blocks[0] + "," + blocks[1] + " " + fresh + "\n"
			if name == "transactions, many" {
				script += "jw -b " + blocks[2] + " " + fresh + "\njw -r " + blocks[2] + "\njw -b " + blocks[0] + " " + image + "\n"
			}
			execute(t, script+"jc\n", debugfs, "-w", "-f", "-", image)

			read := func() string {
				f := open(t, image)
				in, err := f.Lookup("f")
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprint(f.Recovered(), " ", describe(t, f, in))
			}
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			got := read()
			if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the image was changed: %v", err)
			}
			_ = exec.Command(tool(t, "e2fsck"), "-fy", image).Run()
			if want := strings.Replace(read(), "false", "true", 1); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	image, err := os.ReadFile(mkfs(t, t.TempDir(), "1M", "-O", "^metadata_csum,^has_journal"))
	if err != nil {
		t.Fatal(err)
	}
	const sb = superblockAt
	tests := []struct {
		name   string
		damage func(p []byte) []byte
		kind   fault.Kind
		says   string
	}{
		{"empty", func([]byte) []byte { return nil }, fault.Invalid, "only 0 bytes"},
		{"zeros", func(p []byte) []byte { return make([]byte, len(p)) }, fault.Invalid, "magic"},
		{"cut", func(p []byte) []byte { return p[:len(p)/2] }, fault.Corrupt, "blocks"},
		{"feature", func(p []byte) []byte { p[sb+0x62] |= 1; return p }, fault.Unsupported, "encrypt"},
		{"feature of the future", func(p []byte) []byte { p[sb+0x63] |= 0x80; return p }, fault.Unsupported, "number 31"},
		{"checksum", func(p []byte) []byte { p[sb+0x65] |= roMetadataCsum >> 8; return p }, fault.Corrupt, "checksum"},
		{"block size", func(p []byte) []byte { p[sb+0x18] = 60; return p }, fault.Corrupt, "block size"},
		{"inode size", func(p []byte) []byte { p[sb+0x58]++; return p }, fault.Corrupt, "inodes of"},
		{"no groups", func(p []byte) []byte { clear(p[sb+0x20 : sb+0x24]); return p }, fault.Corrupt, "groups"},
	}
	for _, tt := range tests {
		p := tt.damage(slices.Clone(image))
		_, err := Open(bytes.NewReader(p), int64(len(p)))
		if !fault.Is(err, tt.kind) || !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
	// A file that is shorter than it was said to be.
	_, err = Open(bytes.NewReader(image[:1500]), int64(len(image)))
	if !fault.Is(err, fault.Corrupt) {
		t.Errorf("short: %v", err)
	}
}

func TestDirectoryLoop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	image := mkfs(t, dir, "16M")
	execute(t, "ln a a/b/loop\n", tool(t, "debugfs"), "-w", "-f", "-", image)
	err := open(t, image).Walk(t.Context(), func(string, *Inode) error { return nil })
	if !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "two places") {
		t.Errorf("got %v", err)
	}
}

func TestWalkEnds(t *testing.T) {
	t.Parallel()
	f := open(t, mkfs(t, t.TempDir(), "1M"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Walk(ctx, func(string, *Inode) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	stop := errors.New("stop")
	if err := f.Walk(t.Context(), func(string, *Inode) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}
