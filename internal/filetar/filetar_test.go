package filetar_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/filetar"
)

type entry struct {
	typ           byte
	name, content string // content: of a link, its target
	mode          int64
}

func archive(t testing.TB, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.typ, Name: e.name, Mode: e.mode, ModTime: time.Unix(1e9, 0)}
		if e.typ == tar.TypeReg {
			h.Size = int64(len(e.content))
		} else {
			h.Linkname = e.content
		}
		err := w.WriteHeader(h)
		if err == nil && e.typ == tar.TypeReg {
			_, err = io.WriteString(w, e.content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func reg(name, content string) entry { return entry{tar.TypeReg, name, content, 0o640} }
func dir(name string) entry          { return entry{tar.TypeDir, name, "", 0o750} }
func sym(name, to string) entry      { return entry{tar.TypeSymlink, name, to, 0o777} }
func hard(name, to string) entry     { return entry{tar.TypeLink, name, to, 0} }

// list describes all that is below a directory: "dir/ file=content link->target".
func list(t testing.TB, root string) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch d.Type() {
		case fs.ModeDir:
			name += "/"
		case fs.ModeSymlink:
			to, _ := os.Readlink(path)
			name += "->" + to
		default:
			content, _ := os.ReadFile(path)
			name += "=" + string(content)
		}
		found = append(found, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

// TestPlace wants docker cp's names.
func TestPlace(t *testing.T) {
	t.Parallel()
	file := []entry{reg("f", "new")}
	tree := []entry{dir("d/"), reg("d/x", "new")}
	content := []entry{dir("./"), reg("x", "new")}
	for name, c := range map[string]struct {
		entries []entry
		dest    string
		want    string
		kind    fault.Kind
	}{
		"file to a directory":        {file, "have", "file=old have/ have/f=new", 0},
		"file to a directory, slash": {file, "have/", "file=old have/ have/f=new", 0},
		"file to a new name":         {file, "n", "file=old have/ n=new", 0},
		"file to a file":             {file, "file", "file=new have/", 0},
		"file to no directory":       {file, "n/", "file=old have/", fault.NotFound},
		"file to nowhere":            {file, "n/o", "file=old have/", fault.NotFound},
		"tree to a directory":        {tree, "have", "file=old have/ have/d/ have/d/x=new", 0},
		"tree to a new name":         {tree, "n", "file=old have/ n/ n/x=new", 0},
		"tree to a new name, slash":  {tree, "n/", "file=old have/ n/ n/x=new", 0},
		"tree to a file":             {tree, "file", "file=old have/", fault.Invalid},
		"tree to nowhere":            {tree, "n/o", "file=old have/", fault.NotFound},
		"content to a directory":     {content, "have", "file=old have/ have/x=new", 0},
		"content to a new name":      {content, "n", "file=old have/ n/ n/x=new", 0},
		"content to a file":          {content, "file", "file=old have/", fault.Invalid},
		"nothing":                    {nil, "have", "file=old have/", fault.Invalid},
	} {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "file"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(root, "have"), 0o700); err != nil {
			t.Fatal(err)
		}
		err := filetar.Place(archive(t, c.entries...), root+"/"+c.dest, "", filetar.Options{})
		if got := list(t, root); got != c.want || (err == nil) != (c.kind == 0) || err != nil && !fault.Is(err, c.kind) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, c.want, c.kind)
		}
	}
}

// TestForeign is the table of what a hostile guest may send when it is asked for "d".
func TestForeign(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]entry{
		"another name":                {reg(".bashrc", "x")},
		"another name later":          {dir("d/"), reg(".bashrc", "x")},
		"dots":                        {dir("d/"), reg("d/../.bashrc", "x")},
		"more dots":                   {dir("d/"), reg("d/../../x", "x")},
		"absolute":                    {reg(outside+"/x", "x")},
		"behind a link out":           {dir("d/"), sym("d/l", outside), reg("d/l/x", "x")},
		"behind a link within":        {dir("d/"), sym("d/l", "../mine"), reg("d/l/x", "x")},
		"behind a link of its own":    {dir("d/"), dir("d/e"), sym("d/l", "e"), reg("d/l/x", "x")},
		"the top is a link":           {sym("d", "mine"), reg("d/x", "x")},
		"the top becomes a link":      {dir("d/"), sym("d", "mine"), reg("d/x", "x")},
		"directory behind a link":     {dir("d/"), sym("d/l", "../mine"), dir("d/l/x/")},
		"link behind a link":          {dir("d/"), sym("d/l", "../mine"), sym("d/l/x", "y")},
		"hard link out":               {dir("d/"), hard("d/h", "../mine/file")},
		"hard link absolute":          {dir("d/"), hard("d/h", outside+"/secret")},
		"hard link to another name":   {dir("d/"), hard("d/h", "mine/file")},
		"hard link through a link":    {dir("d/"), sym("d/l", "../mine"), hard("d/h", "d/l/file")},
		"hard link to itself":         {dir("d/"), reg("d/h", "x"), hard("d/h", "d/h")},
		"over a directory with files": {dir("d/"), reg("d/e/f", "x"), reg("d/e", "x")},
		"a file as a directory":       {dir("d/"), reg("d/f", "x"), reg("d/f/g", "x")},
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "mine"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "mine", "file"), []byte("m"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := filetar.Place(archive(t, entries...), root, "d", filetar.Options{Foreign: true})
		if err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if got := list(t, filepath.Join(root, "mine")); got != "file=m" {
			t.Errorf("%s: it reached %q", name, got)
		}
		for at := range strings.FieldsSeq(list(t, root)) {
			if !strings.HasPrefix(at, "mine/") && at != "d/" && !strings.HasPrefix(at, "d/") && !strings.HasPrefix(at, "d->") || strings.Contains(at, ".banger-") {
				t.Errorf("%s: it left %q", name, at)
			}
		}
	}
	if got := list(t, outside); got != "secret=s" {
		t.Errorf("something got out: %q", got)
	}
}

func TestForeignKeepsWhatIsHarmless(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	in := archive(t, dir("d/"), entry{tar.TypeReg, "d/suid", "x", 0o6755}, sym("d/out", "/etc/passwd"), hard("d/h", "d/suid"),
		entry{tar.TypeChar, "d/null", "", 0o666}, entry{tar.TypeFifo, "d/pipe", "", 0o666}, reg("d/FILE", "1"), reg("d/file", "2"),
		reg("d/"+strings.Repeat("n", 200), ""), reg("d/file", "3"))
	var leftOut []string
	err := filetar.Place(in, root+"/copy", "d", filetar.Options{Foreign: true, LeftOut: func(name string) { leftOut = append(leftOut, name) }})
	if err != nil {
		t.Fatal(err)
	}
	want := "copy/ copy/FILE=1 copy/file=3 copy/h=x copy/" + strings.Repeat("n", 200) + "= copy/out->/etc/passwd copy/suid=x"
	if got := list(t, root); got != want || !slices.Equal(leftOut, []string{"d/null", "d/pipe"}) {
		t.Errorf("%q, left out %q; want %q", got, leftOut, want)
	}
	info, err := os.Stat(root + "/copy/suid")
	if err != nil || info.Mode() != 0o755 || info.ModTime().Unix() != 1e9 {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(root + "/copy"); err != nil || info.Mode() != fs.ModeDir|0o750 || info.ModTime().Unix() != 1e9 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestSparseBomb wants an entry refused that claims more than was sent for it.
func TestSparseBomb(t *testing.T) {
	t.Parallel()
	for _, size := range []string{"1099511627776", "512"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		// archive/tar reads sparse files and does not write them: this is one of GNU's format 1.0 under another name.
		content := "1\n0\n0\n" + strings.Repeat("\x00", 506)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "d", Size: int64(len(content)), Mode: 0o600, Format: tar.FormatPAX, PAXRecords: map[string]string{
			"XNU.sparse.major": "1", "XNU.sparse.minor": "0", "XNU.sparse.name": "d", "XNU.sparse.realsize": size,
		}}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, content)
		_ = w.Close()
		raw := bytes.ReplaceAll(b.Bytes(), []byte("XNU.sparse"), []byte("GNU.sparse"))
		if probe, err := tar.NewReader(bytes.NewReader(raw)).Next(); err != nil || probe.Name != "d" {
			t.Fatalf("the test makes no archive: %v", err)
		}
		dest := t.TempDir()
		err := filetar.Place(bytes.NewReader(raw), dest, "d", filetar.Options{Foreign: true})
		if !fault.Is(err, fault.Unsupported) || list(t, dest) != "" {
			t.Errorf("%s bytes: %v, %q", size, err, list(t, dest))
		}
	}
}

// TestCutArchive wants nothing half under its name, whatever byte the stream ends at.
func TestCutArchive(t *testing.T) {
	t.Parallel()
	whole := archive(t, reg("d", strings.Repeat("new", 1000))).Bytes()
	for cut := 0; cut < 512+3000; cut += 97 {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "copy"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := filetar.Place(bytes.NewReader(whole[:cut]), root+"/copy", "d", filetar.Options{Foreign: true})
		if got := list(t, root); err == nil || got != "copy=old" {
			t.Errorf("cut at %d: %v, %q", cut, err, got)
		}
	}
}

func TestPackAndPlace(t *testing.T) {
	t.Parallel()
	src := filepath.Join(t.TempDir(), "tree")
	for _, d := range []string{"a/b", "empty"} {
		if err := os.MkdirAll(filepath.Join(src, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	big := strings.Repeat("0123456789", 100_000)
	for name, content := range map[string]string{"a/b/big": big, "a/nothing": "", "x": "x"} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Symlink("b/big", filepath.Join(src, "a/link")), os.Symlink("nowhere", filepath.Join(src, "dangling")),
		os.Link(filepath.Join(src, "x"), filepath.Join(src, "y")), os.Chmod(filepath.Join(src, "empty"), 0o500),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"tree", "."} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := filetar.Pack(t.Context(), w, src, filetar.PackOptions{Name: name, Plain: true}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dest := filepath.Join(t.TempDir(), "copy")
		if err := filetar.Place(&b, dest, name, filetar.Options{Foreign: true}); err != nil {
			t.Fatal(err)
		}
		if got, want := list(t, dest), list(t, src); got != want {
			t.Errorf("%s: %.300q, want %.300q", name, got, want)
		}
		x, _ := os.Stat(filepath.Join(dest, "x"))
		y, err := os.Stat(filepath.Join(dest, "y"))
		if err != nil || !os.SameFile(x, y) || x.Mode() != 0o640 {
			t.Errorf("%s: hard links: %v, %v", name, x, err)
		}
		if info, err := os.Stat(filepath.Join(dest, "empty")); err != nil || info.Mode().Perm() != 0o500 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func FuzzPlace(f *testing.F) {
	f.Add(archive(f, dir("d/"), reg("d/x", "x"), sym("d/l", ".."), reg("d/l/y", "x")).Bytes())
	f.Add(archive(f, reg("d", "x"), hard("d", "d")).Bytes())
	f.Add(archive(f, sym("d", "/"), dir("d/etc/")).Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		base := t.TempDir()
		dest := filepath.Join(base, "in")
		if err := os.MkdirAll(filepath.Join(dest, "mine"), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = filetar.Place(bytes.NewReader(raw), dest, "d", filetar.Options{Foreign: true})
		for _, at := range [][2]string{{base, "in"}, {dest, "d mine"}, {filepath.Join(dest, "mine"), ""}} {
			entries, err := os.ReadDir(at[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !slices.Contains(strings.Fields(at[1]), e.Name()) {
					t.Fatalf("it made %s in %s", e.Name(), at[0])
				}
			}
		}
	})
}
