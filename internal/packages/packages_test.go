package packages

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"banger/internal/fault"
)

// item is a file to pack.
type item struct {
	name, content string
	mode          fs.FileMode
}

func kernelItems() []item {
	return []item{
		{"./boot", "", fs.ModeDir | 0o755},
		{"./boot/vmlinuz-6.1", strings.Repeat("kernel ", 1000), 0o644},
		{"./lib/modules/6.1/build", "/usr/src", fs.ModeSymlink | 0o777},
		{"./lib/modules/6.1/a.ko", "odd", 0o644},
		{"/etc/absolute", "x", 0o600},
	}
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func xzip(b []byte) []byte {
	var out bytes.Buffer
	w, _ := xz.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

func plain(b []byte) []byte { return b }

func tarOf(items []item) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, it := range items {
		h := &tar.Header{Name: it.name, Mode: int64(it.mode.Perm()), Size: int64(len(it.content)), Typeflag: tar.TypeReg}
		switch {
		case it.mode.IsDir():
			h.Typeflag, h.Size = tar.TypeDir, 0
		case it.mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, it.content
		case it.mode&fs.ModeDevice != 0:
			h.Typeflag, h.Size = tar.TypeChar, 0
		}
		_ = w.WriteHeader(h)
		if h.Size > 0 {
			_, _ = io.WriteString(w, it.content)
		}
	}
	_ = w.Close()
	return out.Bytes()
}

func member(name string, data []byte) string {
	s := fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", name, 0, 0, 0, "100644", len(data), data)
	if len(data)%2 == 1 {
		s += "\n"
	}
	return s
}

func debOf(items []item, suffix string, pack func([]byte) []byte) []byte {
	control := tarOf([]item{{"./control", "Package: linux-image-6.1\nVersion: 6.1-1\nDepends: x\n", 0o644}})
	return []byte(arMagic + member("debian-binary", []byte("2.0\n")) + member("control.tar"+suffix, pack(control)) +
		member("data.tar"+suffix, pack(tarOf(items))))
}

func cpioOf(items []item) []byte {
	var out bytes.Buffer
	add := func(name string, mode uint32, content string) {
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		out.Write(make([]byte, -out.Len()&3))
		out.WriteString(content)
		out.Write(make([]byte, -out.Len()&3))
	}
	for _, it := range items {
		kind := uint32(0o100000)
		switch {
		case it.mode.IsDir():
			kind = 0o040000
		case it.mode&fs.ModeSymlink != 0:
			kind = 0o120000
		case it.mode&fs.ModeDevice != 0:
			kind = 0o020000
		}
		add(it.name, kind|uint32(it.mode.Perm()), it.content)
	}
	add("TRAILER!!!", 0, "")
	return out.Bytes()
}

func rpmHeader(tags map[uint32]string) []byte {
	be := binary.BigEndian
	var index, store []byte
	for tag := uint32(tagName); tag <= tagRelease; tag++ {
		if text, ok := tags[tag]; ok {
			for _, v := range []uint32{tag, typeString, uint32(len(store)), 1} {
				index = be.AppendUint32(index, v)
			}
			store = append(append(store, text...), 0)
		}
	}
	out := append([]byte(headerMagic), 0, 0, 0, 0)
	out = be.AppendUint32(out, uint32(len(index)/16))
	out = be.AppendUint32(out, uint32(len(store)))
	return append(append(out, index...), store...)
}

func rpmOf(items []item, pack func([]byte) []byte) []byte {
	out := append([]byte(rpmMagic), make([]byte, 92)...)
	signatures := rpmHeader(map[uint32]string{tagName: "sig"})
	out = append(append(out, signatures...), make([]byte, -len(signatures)&7)...)
	out = append(out, rpmHeader(map[uint32]string{tagName: "kernel-core", tagVersion: "6.8", tagRelease: "1.fc40"})...)
	return append(out, pack(cpioOf(items))...)
}

// list reads a whole package.
func list(tb testing.TB, data []byte) (p *Package, items []item, err error) {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "p")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	if p, err = Open(file); err != nil {
		return nil, nil, err
	}
	defer p.Close()
	for range 1000 {
		e, r, err := p.Next()
		if errors.Is(err, io.EOF) {
			return p, items, nil
		}
		if err != nil {
			return p, items, err
		}
		it := item{name: e.Name, mode: e.Mode}
		if e.Mode.IsRegular() && len(items)%2 == 1 { // every other file is skipped
			content, err := io.ReadAll(io.LimitReader(r, 1<<20))
			if err != nil {
				return p, items, err
			}
			it.content = string(content)
		}
		items = append(items, it)
	}
	return p, items, nil
}

func TestRead(t *testing.T) {
	t.Parallel()
	items := kernelItems()
	for name, tc := range map[string]struct {
		data          []byte
		pkg, version  string
		linkIsContent bool
	}{
		"deb, xz":   {debOf(items, ".xz", xzip), "linux-image-6.1", "6.1-1", false},
		"deb, gzip": {debOf(items, ".gz", gz), "linux-image-6.1", "6.1-1", false},
		"deb, zstd": {debOf(items, ".zst", zst), "linux-image-6.1", "6.1-1", false},
		"deb":       {debOf(items, "", plain), "linux-image-6.1", "6.1-1", false},
		"rpm, zstd": {rpmOf(items, zst), "kernel-core", "6.8-1.fc40", true},
		"rpm, xz":   {rpmOf(items, xzip), "kernel-core", "6.8-1.fc40", true},
		"rpm, gzip": {rpmOf(items, gz), "kernel-core", "6.8-1.fc40", true},
	} {
		if !Is(tc.data[:8]) {
			t.Errorf("%s: not known as a package", name)
		}
		p, got, err := list(t, tc.data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Name != tc.pkg || p.Version != tc.version {
			t.Errorf("%s: %s %s", name, p.Name, p.Version)
		}
		if len(got) != len(items) {
			t.Errorf("%s: %d files", name, len(got))
			continue
		}
		if got[1].name != "boot/vmlinuz-6.1" || got[1].content != items[1].content || got[2].mode.Type() != fs.ModeSymlink ||
			got[3].content != "odd" || got[4].name != "etc/absolute" || !got[0].mode.IsDir() {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	items := kernelItems()
	deb, rpm := debOf(items, ".xz", xzip), rpmOf(items, zst)
	bomb := xzip([]byte("x"))
	bomb[12+3] = 40 // 4 GiB of dictionary
	hugeHeader := bytes.Clone(rpm)
	binary.BigEndian.PutUint32(hugeHeader[96+8:], 1<<31)
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"traversal in deb": {debOf([]item{{"./boot/../../etc/passwd", "x", 0o644}}, "", plain), "leads out"},
		"traversal in rpm": {rpmOf([]item{{"../etc/passwd", "x", 0o644}}, zst), "leads out"},
		"cut deb":          {deb[:len(deb)*2/3], "read package"},
		"cut rpm":          {rpm[:len(rpm)-20], "read package"},
		"cut rpm header":   {rpm[:120], "read package"},
		"only ar":          {[]byte(arMagic), "read package"},
		"other archive":    {[]byte(arMagic + member("hello.o", nil)), "not a Debian package"},
		"no data":          {[]byte(arMagic + member("debian-binary", []byte("2.0\n"))), "data.tar"},
		"negative size":    {[]byte(arMagic + strings.Replace(member("debian-binary", nil), "0         `", "-5        `", 1)), "bad size"},
		"memory bomb":      {[]byte(arMagic + member("debian-binary", []byte("2.0\n")) + member("data.tar.xz", bomb)), "memory"},
		"huge count":       {hugeHeader, "bad header"},
		"not cpio":         {rpmOf(nil, func([]byte) []byte { return bytes.Repeat([]byte("x"), 200) }), "bad magic"},
		"text":             {[]byte("hello, world"), "neither"},
		"empty":            {nil, "neither"},
	} {
		_, _, err := list(t, tc.data)
		if !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func fuzz(f *testing.F, seeds ...[]byte) {
	f.Helper()
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, items, err := list(t, data)
		for _, it := range items {
			if !filepath.IsLocal(it.name) {
				t.Errorf("the name %q", it.name)
			}
		}
		if _, ok := errors.AsType[*fault.Error](err); err != nil && !ok {
			t.Errorf("unclassified: %v", err)
		}
	})
}

func FuzzDeb(f *testing.F) {
	items := kernelItems()
	fuzz(f, debOf(items, ".xz", xzip), debOf(items, ".gz", gz), debOf(items, ".zst", zst), debOf(items, "", plain))
}

func FuzzRPM(f *testing.F) {
	items := kernelItems()
	fuzz(f, rpmOf(items, plain), rpmOf(items, zst), rpmOf(items, gz))
}
