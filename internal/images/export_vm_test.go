//go:build vm

package images

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/oci"
	"banger/internal/overlay"
)

// TestContainerToolsLoadExports unpacks with umoci what skopeo has read from an export, and compares it with the directory that
// the image was made of. It boots no VM.
func TestContainerToolsLoadExports(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("owners and devices need root")
	}
	for _, program := range []string{"skopeo", "umoci", "setcap", "mkfs.ext4"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	dir := t.TempDir()
	root, file := filepath.Join(dir, "root"), filepath.Join(dir, "root.ext4")
	sh := func(script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir = dir
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, stderr.Bytes())
		}
		return string(out)
	}
	sh(`mkdir -p root/d/e root/many; cd root
		echo content >f; chmod 4755 f; chown 123:456 f; ln f d/hard; ln -s ../f d/e/link; ln -s /nowhere dangling
		printf x >"with space"; printf x >"$(printf 'bad\377')"; printf 'y%.0s' $(seq 255) | xargs touch; mkfifo -m 620 fifo; mknod null c 1 3
		mknod -m 660 disk b 8 17; truncate -s 20M sparse; echo end >>sparse; cp /bin/true cap; setcap cap_net_raw+ep cap
		chmod 1777 many; cd many; seq -f 'entry-%.0f' 2000 | xargs touch; cd ..; touch -d 1999-12-31T23:59:58Z f; chmod 700 d/e`)
	sh("mkfs.ext4 -q -F -d root root.ext4 200M")
	fsys, f, err := openFilesystem(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	// As find prints it: name, type, mode, owner, links, time, size, target; device numbers and capabilities besides.
	describe := func(root string) string {
		return sh("cd " + root + `; find . -mindepth 1 -path ./lost+found -prune -o -mindepth 1 -type d -printf '%P %y %m %U:%G\n' \
			-o -mindepth 1 -printf '%P %y %m %U:%G %n %Ts %s %l\n' | LC_ALL=C sort
			find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; stat -c '%n %t:%T' null disk; getcap cap`)
	}
	for _, format := range []oci.Format{oci.FormatOCI, oci.FormatDocker} {
		p, err := oci.Pack(t.Context(), dir, format, oci.Content{
			Name: "made", Created: time.Unix(1, 0), Config: oci.Config{Cmd: []string{"/bin/true"}},
			WriteRoot: func(ctx context.Context, w io.Writer) error {
				return overlay.WriteTar(ctx, w, overlay.Root{Base: fsys}, overlay.Options{})
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		archive, err := os.Create(filepath.Join(dir, string(format)+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WriteArchive(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
		if err := archive.Close(); err != nil {
			t.Fatal(err)
		}
		_ = p.Close()
		// What is called OCI can be read as docker's form, too.
		for _, as := range map[oci.Format][]string{oci.FormatOCI: {"oci", "docker"}, oci.FormatDocker: {"docker"}}[format] {
			out := string(format) + "-" + as
			sh("skopeo --insecure-policy copy -q " + as + "-archive:" + archive.Name() + " oci:" + out + ":x && umoci unpack --image " + out + ":x " + out + "-bundle")
			if got, want := describe(filepath.Join(dir, out+"-bundle/rootfs")), describe(root); got != want {
				_ = os.WriteFile(filepath.Join(dir, "got"), []byte(got), 0o600)
				_ = os.WriteFile(filepath.Join(dir, "want"), []byte(want), 0o600)
				t.Errorf("%s read as %s:\n%s", format, as, sh("diff want got | head -20 || true"))
			}
		}
	}
}
