package initramfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"banger/internal/fault"
	"banger/internal/kmod"
)

const depText = `kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/virtio_net.ko.gz: kernel/drivers/net/net_failover.ko.zst kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/net_failover.ko.zst: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/lib/libcrc32c.ko:
kernel/arch/crc32c-intel.ko:
kernel/broken.ko: kernel/gone.ko
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
`

func modulesTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "6.1.0-test")
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write([]byte("content of virtio_net"))
	_ = w.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close() //nolint:errcheck // it writes nowhere
	files := map[string]string{
		"modules.dep": depText, "modules.builtin": "kernel/fs/ext4/ext4.ko\n",
		"modules.softdep":                        "# comment\nsoftdep libcrc32c pre: crc32c-intel gone post: virtio\n",
		"kernel/drivers/net/virtio_net.ko.gz":    gz.String(),
		"kernel/drivers/net/net_failover.ko.zst": string(enc.EncodeAll([]byte("content of net_failover"), nil)),
		"kernel/net/core/failover.ko":            "content of failover", "kernel/lib/libcrc32c.ko": "content of libcrc32c",
	}
	for _, name := range []string{"virtio", "virtio_ring", "virtio_mmio"} {
		files["kernel/drivers/virtio/"+name+".ko"] = "content of " + name
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolve(t *testing.T) {
	t.Parallel()
	dir := modulesTree(t)
	tests := []struct {
		names, want string
	}{
		{"virtio_mmio", "virtio_ring virtio virtio_mmio"},
		{"virtio_rng", "virtio_ring virtio virtio_rng"},
		{"virtio-mmio virtio_mmio", "virtio_ring virtio virtio_mmio"},
		{"ext4", ""},
		{"ext4 virtio_net virtio_mmio", "virtio_ring virtio failover net_failover virtio_net virtio_mmio"},
		{"libcrc32c", "crc32c_intel libcrc32c"},
		{"a", "b a"},
	}
	for _, tt := range tests {
		files, err := Resolve(dir, strings.Fields(tt.names))
		if err != nil {
			t.Errorf("%s: %v", tt.names, err)
		}
		for i := range files {
			files[i] = kmod.Canonical(files[i])
		}
		if got := strings.Join(files, " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.names, got, tt.want)
		}
	}
	for _, name := range []string{"nonexistent", "broken"} {
		_, err := Resolve(dir, []string{name})
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "6.1.0-test") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Resolve(t.TempDir(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no modules.dep: got %v", err)
	}
}

func TestParseDepRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"no colon", "../../etc/x.ko:", "/etc/x.ko:", ":", strings.Repeat("x", maxLine+1)} {
		if _, err := parseDep(strings.NewReader(text)); err == nil {
			t.Errorf("accepted %.50q", text)
		}
	}
}

func FuzzParseDep(f *testing.F) {
	f.Add(depText)
	f.Add("a.ko: a.ko\n\n#x\n")
	f.Fuzz(func(t *testing.T, text string) {
		deps, err := parseDep(strings.NewReader(text))
		if err != nil {
			return
		}
		x := &index{release: "r", loads: deps}
		for name, e := range deps {
			if !filepath.IsLocal(e.path) {
				t.Errorf("path %q leads out", e.path)
			}
			order, err := x.resolve([]string{name})
			if err == nil && (len(order) == 0 || order[len(order)-1] != e.path && len(e.deps) == 0) {
				t.Errorf("%s: order %q", name, order)
			}
		}
	})
}

// member is a file as a reader of the archive sees it.
type member struct {
	name                 string
	ino, mode, major, at uint64
	content              string
}

// read is an independent reader of the format.
func read(t *testing.T, data []byte) []member {
	t.Helper()
	var out []member
	for pos := 0; ; {
		if pos%4 != 0 || string(data[pos:pos+6]) != "070701" {
			t.Fatalf("no header at %d", pos)
		}
		var field [13]uint64
		for i := range field {
			n, err := strconv.ParseUint(string(data[pos+6+8*i:pos+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			field[i] = n
		}
		name := string(data[pos+110 : pos+110+int(field[11])-1])
		begin := (pos + 110 + int(field[11]) + 3) &^ 3
		content := data[begin : begin+int(field[6])]
		pos = (begin + len(content) + 3) &^ 3
		if name == trailer {
			if len(data)%512 != 0 || len(bytes.Trim(data[pos:], "\x00")) != 0 {
				t.Error("bad padding at the end")
			}
			return out
		}
		out = append(out, member{name: name, ino: field[0], mode: field[1], major: field[9], at: field[5], content: string(content)})
	}
}

func TestBuild(t *testing.T) {
	t.Parallel()
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("\x7fELF and more"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := Spec{AgentPath: agent, ModulesDir: modulesTree(t), Modules: []string{"virtio_net", "ext4", "virtio_mmio"}}
	var a, b bytes.Buffer
	if err := errors.Join(Build(t.Context(), &a, spec), Build(t.Context(), &b, spec)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two builds differ")
	}
	files := map[string]member{}
	inodes := map[uint64]bool{}
	var order []string
	for _, m := range read(t, a.Bytes()) {
		if m.at != 0 || inodes[m.ino] {
			t.Errorf("%s: time %d, inode %d", m.name, m.at, m.ino)
		}
		if dir := filepath.Dir(m.name); dir != "." && files[dir].mode&0o170000 != typeDir {
			t.Errorf("%s comes before its directory", m.name)
		}
		inodes[m.ino], files[m.name] = true, m
		order = append(order, m.name)
	}
	if m := files["init"]; m.mode != typeFile|0o755 || m.content != "\x7fELF and more" {
		t.Errorf("init: %+v", m)
	}
	if m := files["dev/console"]; m.mode != typeChar|0o600 || m.major != 5 {
		t.Errorf("console: %+v", m)
	}
	var want strings.Builder
	for _, name := range []string{"virtio_ring", "virtio", "failover", "net_failover", "virtio_net", "virtio_mmio"} {
		path := "banger/modules/" + name + ".ko"
		fmt.Fprintf(&want, "/%s\n", path)
		if files[path].content != "content of "+name {
			t.Errorf("%s holds %q", path, files[path].content)
		}
	}
	if got := files["banger/modules.list"].content; got != want.String() {
		t.Errorf("list is\n%s", got)
	}
	if !slices.Contains(order, "proc") || !slices.Contains(order, "sys") {
		t.Errorf("mount points are missing: %q", order)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := Build(t.Context(), &bytes.Buffer{}, Spec{AgentPath: script, ModulesDir: modulesTree(t)})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("a script as agent: %v", err)
	}
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	err = Build(t.Context(), &full{left: 700}, Spec{AgentPath: agent, ModulesDir: modulesTree(t), Modules: []string{"virtio_mmio"}})
	if !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errFull = errors.New("full")

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestKey(t *testing.T) {
	t.Parallel()
	keys := map[string]bool{}
	for _, k := range []string{
		Key("a", "b", nil), Key("ab", "", nil), Key("a", "b", []string{"c"}), Key("a", "b", []string{"c", "d"}),
		Key("a", "b", []string{"cd"}), Key("a", "b", []string{"d", "c"}),
	} {
		keys[k] = true
	}
	if len(keys) != 6 || !keys[Key("a", "b", []string{"c"})] {
		t.Errorf("keys %v", keys)
	}
}
