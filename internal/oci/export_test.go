package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"banger/internal/fault"
	"banger/internal/oci"
)

// packable is an image to write.
func packable() oci.Content {
	return oci.Content{
		Name: "made:1", Created: time.Unix(1_700_000_000, 0).UTC(),
		Config: oci.Config{
			Entrypoint: []string{"/e"}, Cmd: []string{"a", "b"}, Env: []string{"K=V"}, WorkDir: "/w", User: "1:2", StopSignal: "SIGINT",
			Labels: map[string]string{"l": "v"}, ExposedPorts: []string{"443/tcp", "80/tcp"}, Volumes: []string{"/v"},
		},
		WriteRoot: func(_ context.Context, w io.Writer) error {
			tw := tar.NewWriter(w)
			err := tw.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 7})
			if err == nil {
				err = tw.WriteHeader(&tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o600, Size: 7})
			}
			if err == nil {
				_, err = io.WriteString(tw, "content")
			}
			return errors.Join(err, tw.Close())
		},
	}
}

func pack(t *testing.T, f oci.Format) *oci.Packed {
	t.Helper()
	dir := t.TempDir()
	p, err := oci.Pack(t.Context(), dir, f, packable())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("files with names: %v, %v", left, err)
	}
	return p
}

// checkSource compares what was written with what is read.
func checkSource(t *testing.T, s *oci.Source) {
	t.Helper()
	defer s.Close() //nolint:errcheck // only read
	want, got := packable(), s.Image()
	if !slices.Equal(got.Config.Entrypoint, want.Config.Entrypoint) || !slices.Equal(got.Config.Cmd, want.Config.Cmd) ||
		!slices.Equal(got.Config.Env, want.Config.Env) || !slices.Equal(got.Config.ExposedPorts, want.Config.ExposedPorts) ||
		!slices.Equal(got.Config.Volumes, want.Config.Volumes) || !maps.Equal(got.Config.Labels, want.Config.Labels) ||
		got.Config.WorkDir != want.Config.WorkDir || got.Config.User != want.Config.User || got.Config.StopSignal != want.Config.StopSignal {
		t.Errorf("configuration %+v", got.Config)
	}
	if got.Platform.Architecture != runtime.GOARCH || !got.Created.Equal(want.Created) {
		t.Errorf("platform %v, created %v", got.Platform, got.Created)
	}
	var buf bytes.Buffer
	if err := s.WriteTar(t.Context(), &buf, nil); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(&buf); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("no file in the root: %v", err)
		}
		if strings.TrimPrefix(h.Name, "./") != "d/f" {
			continue
		}
		if content, err := io.ReadAll(r); string(content) != "content" || h.Mode != 0o600 || err != nil {
			t.Errorf("file %q, mode %o, %v", content, h.Mode, err)
		}
		return
	}
}

func TestWriteArchive(t *testing.T) {
	t.Parallel()
	for _, format := range []oci.Format{oci.FormatOCI, oci.FormatDocker} {
		var first, second bytes.Buffer
		p := pack(t, format)
		if err := p.WriteArchive(t.Context(), &first); err != nil {
			t.Fatal(err)
		}
		if err := pack(t, format).WriteArchive(t.Context(), &second); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("%s: the same image gives different archives", format)
		}
		file := filepath.Join(t.TempDir(), "archive")
		if err := os.WriteFile(file, first.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := oci.New(oci.Options{CacheDir: t.TempDir()}).OpenArchive(t.Context(), file, "")
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		// Docker's form of an archive holds no manifest.
		if digest, err := p.Digest(); format == oci.FormatOCI && (err != nil || s.Image().Digest != digest) {
			t.Errorf("%s: digest %s, want %s, %v", format, s.Image().Digest, digest, err)
		}
		checkSource(t, s)
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	defer server.Close()
	client := oci.New(oci.Options{CacheDir: t.TempDir()})
	ref := strings.TrimPrefix(server.URL, "http://") + "/team/made:2"
	p := pack(t, oci.FormatOCI)
	if err := client.Push(t.Context(), p, ref, nil); err != nil {
		t.Fatal(err)
	}
	s, err := client.Open(t.Context(), ref, oci.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if digest, err := p.Digest(); err != nil || s.Image().Digest != digest {
		t.Errorf("digest %s, want %s, %v", s.Image().Digest, digest, err)
	}
	checkSource(t, s)
	if err := client.Push(t.Context(), p, "UPPER/case", nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("bad reference: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := client.Push(ctx, p, ref, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPackFails(t *testing.T) {
	t.Parallel()
	if _, err := oci.Pack(t.Context(), t.TempDir(), "zip", packable()); !fault.Is(err, fault.Invalid) {
		t.Errorf("format: %v", err)
	}
	broken := packable()
	stop := errors.New("stop")
	broken.WriteRoot = func(context.Context, io.Writer) error { return stop }
	if _, err := oci.Pack(t.Context(), t.TempDir(), oci.FormatOCI, broken); !errors.Is(err, stop) {
		t.Errorf("root: %v", err)
	}
}
