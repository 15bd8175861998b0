//go:build vm

package e2e

import (
	"log/slog"
	"net/http/httptest"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdRegistry: registry VARIABLE [FILE] starts an empty registry on loopback that lasts as long as the scenario, and sets
// the variable to its address. As long as the file is there, whoever fetches a layer gets its first MiB and then waits.
func cmdRegistry(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: registry VARIABLE [FILE]")
	}
	handler := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	if len(args) == 2 {
		handler = stalling(handler, ts.MkAbs(args[1]))
	}
	server := httptest.NewServer(handler)
	ts.Defer(func() {
		server.CloseClientConnections() // a request that waits ends
		server.Close()
	})
	ts.Setenv(args[0], strings.TrimPrefix(server.URL, "http://"))
}

// cmdPush: push REFERENCE DIR COMMAND... pushes an image of the files in a directory, all root's, that runs a command.
func cmdPush(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: push REFERENCE DIR COMMAND...")
	}
	file := ts.MkAbs("layer.tar")
	out, err := exec.Command("tar", "-c", "--owner=0", "--group=0", "-f", file, "-C", ts.MkAbs(args[1]), ".").CombinedOutput()
	if err != nil {
		ts.Fatalf("tar: %v\n%s", err, out)
	}
	layer, err := tarball.LayerFromFile(file)
	ts.Check(err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	ts.Check(err)
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: "amd64", Config: v1.Config{Entrypoint: args[2:3], Cmd: args[3:]}, RootFS: rootFS(ts, img),
	})
	ts.Check(err)
	ref, err := name.ParseReference(args[0], name.Insecure)
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
}

func rootFS(ts *testscript.TestScript, img v1.Image) v1.RootFS {
	c, err := img.ConfigFile()
	ts.Check(err)
	return c.RootFS
}
