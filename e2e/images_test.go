//go:build vm

package e2e

import (
	"archive/tar"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"slices"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdStatic: static PACKAGE FILE builds a program of this folder, statically linked.
func cmdStatic(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: static PACKAGE FILE")
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", ts.MkAbs(args[1]), "banger/e2e/"+args[0])
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		ts.Fatalf("go build: %v\n%s", err, out)
	}
}

// hasStaticBusybox reports whether there is a busybox that runs without any library.
func hasStaticBusybox() bool {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return false
	}
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// cmdArchive: archive FILE DIR CONFIG makes an archive as "docker save" does, of an image that holds the files of a
// directory, all root's, with this run configuration (the "config" of an OCI image configuration).
func cmdArchive(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: archive FILE DIR CONFIG")
	}
	layer, err := exec.Command("tar", "-c", "--owner=0", "--group=0", "--sort=name", "-C", ts.MkAbs(args[1]), ".").Output()
	ts.Check(err)
	config := encode(ts, map[string]any{
		"os": "linux", "architecture": runtime.GOARCH, "config": json.RawMessage(args[2]),
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	configName, layerName := digest(config)+".json", digest(layer)+"/layer.tar"
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	w := tar.NewWriter(f)
	for _, file := range []struct {
		name    string
		content []byte
	}{
		{"manifest.json", encode(ts, []map[string]any{{"Config": configName, "Layers": []string{layerName}}})},
		{configName, config},
		{layerName, layer},
	} {
		ts.Check(w.WriteHeader(&tar.Header{Name: file.name, Mode: 0o644, Size: int64(len(file.content))}))
		_, err := w.Write(file.content)
		ts.Check(err)
	}
	ts.Check(w.Close())
	ts.Check(f.Close())
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func encode(ts *testscript.TestScript, v any) []byte {
	text, err := json.Marshal(v)
	ts.Check(err)
	return text
}
