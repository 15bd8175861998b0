package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
)

func TestFlatten(t *testing.T) {
	t.Parallel()
	type layers = [][]item
	for name, tt := range map[string]struct {
		layers layers
		want   map[string]string
	}{
		"implicit parents": {layers{{file("a/b/c", "x")}}, map[string]string{"a": "dir 0755", "a/b": "dir 0755", "a/b/c": "x"}},
		"names":            {layers{{file("/a", "1"), file("./b", "2"), dir("c//d/")}}, map[string]string{"a": "1", "b": "2", "c": "dir 0755", "c/d": "dir 0711"}},
		"upper wins":       {layers{{file("a", "1"), file("b", "1")}, {file("a", "2")}}, map[string]string{"a": "2", "b": "1"}},
		"last wins":        {layers{{file("a", "1"), file("b", "2"), file("a", "3")}}, map[string]string{"a": "3", "b": "2"}},
		"directories merge": {
			layers{{dir("d"), file("d/a", "1")}, {{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o700}, ""}, file("d/b", "2")}},
			map[string]string{"d": "dir 0700", "d/a": "1", "d/b": "2"},
		},
		"whiteout":        {layers{{file("d/a", "1"), file("d/b", "1")}, {file("d/.wh.a", "")}}, map[string]string{"d": "dir 0755", "d/b": "1"}},
		"whiteout of dir": {layers{{file("d/a", "1")}, {file(".wh.d", "")}}, map[string]string{}},
		"whiteout is for lower layers": {
			layers{{file("d/a", "1"), file("f", "1")}, {file("d/b", "2"), file("f", "2"), file(".wh.d", ""), file(".wh.f", "")}},
			map[string]string{"d": "dir 0755", "d/b": "2", "f": "2"},
		},
		"whiteout, then again":      {layers{{dir("d"), file("d/a", "1")}, {file(".wh.d", ""), dir("d"), file("d/b", "2")}}, map[string]string{"d": "dir 0711", "d/b": "2"}},
		"whiteout of nothing there": {layers{{file("x", "1")}, {file("no/.wh.a", ""), file(".wh.b", "")}}, map[string]string{"x": "1"}},
		"whiteout of a symlink, not its target": {
			layers{{file("t/a", "1"), symlink("l", "t")}, {file(".wh.l", "")}}, map[string]string{"t": "dir 0755", "t/a": "1"},
		},
		"opaque":                            {layers{{dir("d"), file("d/a", "1"), file("d/s/b", "1")}, {file("d/.wh..wh..opq", ""), file("d/c", "2")}}, map[string]string{"d": "dir 0711", "d/c": "2"}},
		"opaque after":                      {layers{{dir("d"), file("d/a", "1"), file("d/s/b", "1")}, {file("d/c", "2"), file("d/s/e", "2"), file("d/.wh..wh..opq", "")}}, map[string]string{"d": "dir 0711", "d/c": "2", "d/s": "dir 0755", "d/s/e": "2"}},
		"opaque root":                       {layers{{file("a", "1")}, {file(".wh..wh..opq", ""), file("b", "2")}}, map[string]string{"b": "2"}},
		"aufs":                              {layers{{dir(".wh..wh.plnk"), file(".wh..wh.aufs", ""), file("a", "1"), file("d/.wh..wh.orph", "")}}, map[string]string{"a": "1"}},
		"hard links":                        {layers{{file("b", "1"), hardlink("a", "./b"), hardlink("c", "/a")}}, map[string]string{"a": "1", "b": "= a", "c": "= a"}},
		"hard link to lower":                {layers{{file("d/a", "1")}, {hardlink("b", "d/a")}}, map[string]string{"d": "dir 0755", "d/a": "= b", "b": "1"}},
		"hard link outlives target":         {layers{{file("a", "1"), hardlink("b", "a")}, {file(".wh.a", "")}}, map[string]string{"b": "1"}},
		"hard link, target replaced":        {layers{{file("a", "1"), hardlink("b", "a")}, {file("a", "2")}}, map[string]string{"a": "2", "b": "1"}},
		"hard link to symlink":              {layers{{symlink("l", "/nowhere"), hardlink("m", "l")}}, map[string]string{"l": "-> /nowhere", "m": "= l"}},
		"hard link on itself":               {layers{{file("a", "1"), hardlink("a", "a")}}, map[string]string{"a": "1"}},
		"hard links again":                  {layers{{file("a", "1"), hardlink("b", "a"), file("a", "2"), hardlink("b", "a")}}, map[string]string{"a": "2", "b": "= a"}},
		"file to dir":                       {layers{{file("a", "1")}, {dir("a"), file("a/b", "2")}}, map[string]string{"a": "dir 0711", "a/b": "2"}},
		"dir to file":                       {layers{{file("a/b", "1")}, {file("a", "2")}}, map[string]string{"a": "2"}},
		"dir to file, with whiteouts":       {layers{{file("a/b", "1")}, {file("a", "2"), file("a/.wh.b", "")}}, map[string]string{"a": "2"}},
		"dir to file in a layer":            {layers{{file("a/b", "1"), file("a", "2")}}, map[string]string{"a": "2"}},
		"dir to link to its file":           {layers{{file("a/b", "1"), hardlink("a", "a/b")}}, map[string]string{"a": "1"}},
		"symlink to dir":                    {layers{{symlink("lib", "usr/lib"), file("usr/lib/x", "1")}, {dir("lib"), file("lib/y", "2")}}, map[string]string{"lib": "dir 0711", "lib/y": "2", "usr": "dir 0755", "usr/lib": "dir 0755", "usr/lib/x": "1"}},
		"through a symlink":                 {layers{{dir("usr/lib"), symlink("lib", "usr/lib")}, {file("lib/x", "2")}}, map[string]string{"lib": "-> usr/lib", "usr": "dir 0755", "usr/lib": "dir 0711", "usr/lib/x": "2"}},
		"through an absolute symlink":       {layers{{dir("real"), symlink("a/l", "/real"), file("a/l/x", "1")}}, map[string]string{"a": "dir 0755", "a/l": "-> /real", "real": "dir 0711", "real/x": "1"}},
		"through a symlink out of the root": {layers{{symlink("a", "../../../b"), file("a/x", "1")}}, map[string]string{"a": "-> ../../../b", "b": "dir 0755", "b/x": "1"}},
		"whiteout through a symlink":        {layers{{file("usr/lib/x", "1"), symlink("lib", "usr/lib")}, {file("lib/.wh.x", "")}}, map[string]string{"lib": "-> usr/lib", "usr": "dir 0755", "usr/lib": "dir 0755"}},
		"hard link through a symlink":       {layers{{file("usr/lib/x", "1"), symlink("lib", "usr/lib"), hardlink("y", "lib/x")}}, map[string]string{"lib": "-> usr/lib", "usr": "dir 0755", "usr/lib": "dir 0755", "usr/lib/x": "1", "y": "= usr/lib/x"}},
		"dangling":                          {layers{{symlink("a", "nowhere"), symlink("b", "/no/where")}}, map[string]string{"a": "-> nowhere", "b": "-> /no/where"}},
		"devices":                           {layers{{{tar.Header{Name: "n", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, ""}, {tar.Header{Name: "b", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000}, ""}, {tar.Header{Name: "p", Typeflag: tar.TypeFifo}, ""}}}, map[string]string{"n": "3 1,3", "b": "4 259,70000", "p": "6 0,0"}},
		"strange names":                     {layers{{file("\xff\xfe/"+strings.Repeat("n", 255), "1"), file("sp ace\nnl", "2")}}, map[string]string{"\xff\xfe": "dir 0755", "\xff\xfe/" + strings.Repeat("n", 255): "1", "sp ace\nnl": "2"}},
		"empty":                             {layers{{}, {}}, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, how := range []compression{plain, gzipped, zstded} {
				var data [][]byte
				for _, items := range tt.layers {
					data = append(data, compressed(t, how, archiveOf(t, items...)))
				}
				all, err := flatten(t, testLimits(), data...)
				if err != nil {
					t.Fatalf("%s compression: %v", how, err)
				}
				if got := brief(all); !maps.Equal(got, tt.want) {
					t.Errorf("%s compression: got %q, want %q", how, got, tt.want)
				}
			}
		})
	}
}

func TestFlattenKeepsMetadata(t *testing.T) {
	t.Parallel()
	at := time.Unix(1700000000, 123456789)
	xattrs := map[string]string{xattrKey + "security.capability": "\x01\x00\x00\x02\x00\x20" + strings.Repeat("\x00", 14), xattrKey + "user.empty": ""}
	layer := archiveOf(t,
		item{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 7, Gid: 8, ModTime: at, Format: tar.FormatPAX}, ""},
		item{tar.Header{Name: "su", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 100000, Gid: 65534, ModTime: at, PAXRecords: xattrs, Format: tar.FormatPAX}, "x"},
		hardlink("other", "su"),
	)
	all, err := flatten(t, testLimits(), layer)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]tar.Header{
		".":     {Mode: 0o750, Uid: 7, Gid: 8},
		"other": {Mode: 0o6755, Uid: 100000, Gid: 65534, PAXRecords: xattrs},
	} {
		got := all[name].h
		if got == nil || got.Mode != want.Mode || got.Uid != want.Uid || got.Gid != want.Gid || !got.ModTime.Equal(at) {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		for key, value := range want.PAXRecords {
			if have, ok := got.PAXRecords[key]; !ok || have != value {
				t.Errorf("%s: %s is %q", name, key, have)
			}
		}
	}
	if got := all["su"].h; got.Typeflag != tar.TypeLink || len(got.PAXRecords) > 1 {
		t.Errorf("second name: %+v", got)
	}
}

// sparse is a GNU sparse archive of one file that has 5 bytes at 1 MiB and ends there.
func sparse() []byte {
	var h [512]byte
	copy(h[0:], "hole")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], "00000000005\x00")
	copy(h[136:], "00000000000\x00")
	copy(h[148:], "        S")
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "00004000000\x0000000000005\x00")
	copy(h[483:], "00004000005\x00")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(append(h[:], append([]byte("hello"), make([]byte, 507)...)...), make([]byte, 1024)...)
}

func TestFlattenSparse(t *testing.T) {
	t.Parallel()
	all, err := flatten(t, testLimits(), sparse())
	if err != nil {
		t.Fatal(err)
	}
	if got := all["hole"].content; len(got) != 1<<20+5 || got[1<<20:] != "hello" || strings.Trim(got[:1<<20], "\x00") != "" {
		t.Errorf("%d bytes", len(got))
	}
}

func TestFlattenRefuses(t *testing.T) {
	t.Parallel()
	big := testLimits()
	big.entries = 3
	thin := testLimits()
	thin.memory = 1000
	small := testLimits()
	small.bytes = 100
	long := strings.Repeat("d/", 2000)
	for name, tt := range map[string]struct {
		limits limits
		layers [][]item
		kind   fault.Kind
		text   string
	}{
		"traversal":          {testLimits(), [][]item{{file("a/../../b", "")}}, fault.Invalid, "out of the root"},
		"link out":           {testLimits(), [][]item{{hardlink("a", "../b")}}, fault.Invalid, "out of the root"},
		"link to nothing":    {testLimits(), [][]item{{hardlink("a", "b")}}, fault.Invalid, "not there"},
		"link to the hidden": {testLimits(), [][]item{{file("a", "1")}, {file(".wh.a", ""), hardlink("b", "a")}}, fault.Invalid, "not there"},
		"link to directory":  {testLimits(), [][]item{{dir("a"), hardlink("b", "a")}}, fault.Invalid, "directory"},
		"link to root":       {testLimits(), [][]item{{hardlink("b", "/")}}, fault.Invalid, "not there"},
		"file below file":    {testLimits(), [][]item{{file("a", ""), file("a/b", "")}}, fault.Invalid, "not a directory"},
		"loop":               {testLimits(), [][]item{{symlink("a", "b"), symlink("b", "a"), file("a/x", "")}}, fault.Invalid, "too many symbolic links"},
		"root":               {testLimits(), [][]item{{symlink("/", "x")}}, fault.Invalid, "not a directory"},
		"owner":              {testLimits(), [][]item{{{tar.Header{Name: "a", Typeflag: tar.TypeReg, Uid: 1 << 33}, ""}}}, fault.Invalid, "out of range"},
		"device":             {testLimits(), [][]item{{{tar.Header{Name: "a", Typeflag: tar.TypeChar, Devmajor: 1 << 20}, ""}}}, fault.Invalid, "out of range"},
		"name":               {testLimits(), [][]item{{file(strings.Repeat("n", 256), "")}}, fault.Invalid, "longer than 255"},
		"path":               {testLimits(), [][]item{{symlink("l", long), file("l/"+long+"x", "")}}, fault.Invalid, "too long"},
		"type":               {testLimits(), [][]item{{{tar.Header{Name: "a", Typeflag: 'Z'}, ""}}}, fault.Invalid, "unknown type"},
		"whiteout of itself": {testLimits(), [][]item{{file(".wh..", "")}}, fault.Invalid, "whiteout of nothing"},
		"entries":            {big, [][]item{{file("a", ""), file("b", "")}, {file("a", ""), file("b", "")}}, fault.Invalid, "too many entries"},
		"names":              {thin, [][]item{{file(strings.Repeat("a/", 20)+"x", "")}}, fault.Invalid, "too many names"},
		"content":            {small, [][]item{{file("a", strings.Repeat("x", 60)), file("b", strings.Repeat("x", 60))}}, fault.Invalid, "more than the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var data [][]byte
			for _, items := range tt.layers {
				data = append(data, archiveOf(t, items...))
			}
			if _, err := flatten(t, tt.limits, data...); !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%v), want %v: %s", err, fault.KindOf(err), tt.kind, tt.text)
			}
		})
	}
}

func TestFlattenBombs(t *testing.T) {
	t.Parallel()
	l := testLimits()
	l.bytes, l.entries = 1<<20, 10
	bomb := compressed(t, gzipped, archiveOf(t, file("a", strings.Repeat("\x00", 4<<20))))
	if _, err := flatten(t, l, bomb); !fault.Is(err, fault.Invalid) {
		t.Errorf("gzip: %v", err)
	}
	if _, err := flatten(t, l, sparse()); !fault.Is(err, fault.Invalid) {
		t.Errorf("sparse: %v", err)
	}
	// Each whiteout of a directory looks at all that is in it.
	tr := newTree(testLimits(), false)
	tr.steps = maxSteps - 1<<20
	for i := range 10000 {
		if err := tr.apply(1, int32(i), &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint("d/", i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1000 {
		if err := tr.apply(1, int32(i), &tar.Header{Typeflag: tar.TypeReg, Name: "d/.wh..wh..opq"}); err != nil {
			return
		}
	}
	t.Error("endless work was accepted")
}

func TestFlattenDamaged(t *testing.T) {
	t.Parallel()
	data := archiveOf(t, file("a", strings.Repeat("x", 100000)))
	packed := compressed(t, gzipped, data)
	zs := compressed(t, zstded, archiveOf(t, file("a", random(100000))))
	for name, cut := range map[string][]byte{
		"tar": data[:50000], "gzip": packed[:len(packed)/2], "zstd": zs[:len(zs)/2], "junk": []byte(strings.Repeat("junk", 1000)),
		"bad gzip": append(bytes.Clone(packed[:20]), random(100)...),
	} {
		if _, err := flatten(t, testLimits(), cut); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s: got %v (%v)", name, err, fault.KindOf(err))
		}
	}
}

// random returns bytes that don't compress, always the same ones.
func random(n int) string {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(b); err != nil {
		panic(err)
	}
	return string(b)
}

func TestFlattenManyNames(t *testing.T) {
	t.Parallel()
	const files = 100000
	tr := newTree(testLimits(), false)
	for i := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d/%06d", (i*7919)%files), Size: 1}
		if err := tr.apply(0, int32(i), h); err != nil {
			t.Fatal(err)
		}
	}
	p, err := tr.plan(1)
	if err != nil || len(p.bare) != 2 || len(p.contents[0]) != files {
		t.Fatalf("%d bare, %v", len(p.bare), err)
	}
	for i, n := range p.contents[0] { // in the order of the archive
		if want := fmt.Sprintf("d/%06d", (i*7919)%files); n.path() != want {
			t.Fatalf("entry %d is %q, not %q", i, n.path(), want)
		}
	}
}

func TestWriteTarEndsWithItsContext(t *testing.T) {
	t.Parallel()
	data := archiveOf(t, file("a", strings.Repeat("x", 10<<20)))
	s := &Source{limits: testLimits(), layers: []*layer{{data: io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WriteTar(ctx, io.Discard, nil); !fault.Is(err, fault.Canceled) {
		t.Errorf("got %v", err)
	}
}

func FuzzFlatten(f *testing.F) {
	f.Add(archiveOf(f, file("a", "1"), hardlink("b", "a"), symlink("c", "/d"), file("c/e", "2")), archiveOf(f, file(".wh.a", ""), file("d/.wh..wh..opq", "")))
	f.Add(archiveOf(f, dir("d"), symlink("d/l", "../.."), file("d/l/x", "1")), archiveOf(f, dir("d/l"), file("d/.wh.l", "")))
	f.Add(sparse(), compressed(f, gzipped, archiveOf(f, file("hole/x", "1"))))
	f.Add(compressed(f, zstded, archiveOf(f, file("a", "1"))), compressed(f, xzipped, archiveOf(f, file("a", "1"))))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		l := limits{bytes: 1 << 20, entries: 1000, memory: 1 << 20}
		all, err := flatten(t, l, lower, upper) // listing checks what comes out
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Errorf("an error without a kind: %v", err)
			}
			return
		}
		for name := range all {
			if strings.Contains("/"+name+"/", "/../") || strings.HasPrefix(name, "/") {
				t.Errorf("%q leads out of the root", name)
			}
		}
	})
}
