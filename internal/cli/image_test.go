package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	bangerv1 "banger/internal/gen/banger/v1"
)

func (f *fakeDaemon) DeleteImage(
	_ context.Context, r *connect.Request[bangerv1.DeleteImageRequest],
) (*connect.Response[bangerv1.DeleteImageResponse], error) {
	if r.Msg.GetImage() == "used" {
		return nil, remoteError(connect.CodeFailedPrecondition, "precondition", "delete image used: it is used by VM box", "banger vm delete box")
	}
	return connect.NewResponse(&bangerv1.DeleteImageResponse{}), nil
}

func (f *fakeDaemon) GetImage(
	_ context.Context, r *connect.Request[bangerv1.GetImageRequest],
) (*connect.Response[bangerv1.GetImageResponse], error) {
	if r.Msg.GetImage() == "nosuch" {
		return nil, remoteError(connect.CodeNotFound, "not-found", "no image", "")
	}
	return connect.NewResponse(&bangerv1.GetImageResponse{Image: &bangerv1.Image{
		Name: "app", Digest: "sha256:1", Users: []string{"box"}, Config: &bangerv1.ImageConfig{Cmd: []string{"run", "a b"}, Env: []string{"A=\x1b", "B=2"}},
	}}), nil
}

// ImportImage says what it was sent.
func (f *fakeDaemon) ImportImage(_ context.Context, s *connect.BidiStream[bangerv1.ImportImageRequest, bangerv1.Event]) error {
	first, err := s.Receive()
	if err != nil {
		return err
	}
	var data []byte
	for {
		msg, err := s.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if data = append(data, msg.GetData()...); strings.HasPrefix(string(data), "junk") {
			return remoteError(connect.CodeInvalidArgument, "invalid", "import image: this is no archive", "")
		}
	}
	start := first.GetStart()
	name := start.GetName() + "|" + start.GetTag() + "|" + filepath.Base(start.GetPath()) + "|" + string(data)
	return s.Send(&bangerv1.Event{Kind: &bangerv1.Event_Image{Image: &bangerv1.Image{Name: name, Digest: "sha256:1"}}})
}

func TestImageDelete(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{})
	b.run("image", "delete", "one", "used", "two").want(t, 125, "one\ntwo\n",
		"banger: delete image used: it is used by VM box\n  try: banger vm delete box\n")
}

func TestImageShow(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{})
	b.run("image", "show", "app", "nosuch").want(t, 125,
		"name         app\ndigest       sha256:1\nused by      box\ncmd          run \"a b\"\nenv          A=?\n             B=2\n",
		"banger: no image\n")
	if r := b.run("image", "show", "app", "-o", "json"); !strings.Contains(r.stdout, `"users": [`) || !strings.Contains(r.stdout, `"entrypoint": []`) {
		t.Error(r.stdout)
	}
}

func TestImageImport(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{})
	b.stdin = strings.NewReader(strings.Repeat("x", 10))
	b.run("image", "import", "-", "--name", "n").want(t, 0, "n||.|xxxxxxxxxx sha256:1\n", "")
	file := filepath.Join(b.env["HOME"], "f.tar")
	if err := os.WriteFile(file, []byte("never sent"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.run("image", "import", file, "--tag", "t").want(t, 0, "|t|f.tar| sha256:1\n", "")
	// The daemon's refusal is what is told, though there would be more to send.
	b.stdin = io.MultiReader(strings.NewReader("junk"), endless{})
	b.run("image", "import", "-").want(t, 125, "", "banger: import image: this is no archive\n")
	b.stdin = io.MultiReader(strings.NewReader("x"), failing{})
	if r := b.run("image", "import", "-"); r.status != 125 || !strings.Contains(r.stderr, "read archive: bad disk") {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	if r := b.run("image", "import", file+".missing"); r.status != 125 || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	if r := b.run("image", "import"); r.status != exitUsage {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("bad disk") }
