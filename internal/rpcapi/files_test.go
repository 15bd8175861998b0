//go:build fakevmm

package rpcapi_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// oneFile is an archive of one file, with random-looking content.
func oneFile(t *testing.T, name string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o640, Size: int64(size)})
	if err == nil {
		_, err = io.WriteString(w, strings.Repeat("x", size))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPutAndGetFiles(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	const size = 3 << 20
	at := filepath.Join(t.TempDir(), "f")
	user := "0:0"
	put := func(path string, in io.Reader) error {
		return b.api.PutFiles(t.Context(), &bangerv1.PutFilesStart{Vm: "a", Path: path, User: user}, in)
	}
	if err := put(at, bytes.NewReader(oneFile(t, "other", size))); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(at); err != nil || info.Size() != size || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	var out bytes.Buffer
	err := b.api.GetFiles(t.Context(), &bangerv1.GetFilesRequest{Vm: "a", Path: at, Name: "renamed"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(&out)
	h, err := r.Next()
	if err != nil || h.Name != "renamed" || h.Size != size {
		t.Fatalf("%+v, %v", h, err)
	}
	if n, err := io.Copy(io.Discard, r); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}

	if err := put(at+"/x/", bytes.NewReader(oneFile(t, "f", 1))); err == nil {
		t.Error("a file was taken for a directory")
	}
	if err := put(filepath.Join(at, "../none/f"), bytes.NewReader(oneFile(t, "f", 1))); !fault.Is(err, fault.NotFound) {
		t.Errorf("to nowhere: %v", err)
	}
	if err := b.api.GetFiles(t.Context(), &bangerv1.GetFilesRequest{Vm: "a", Path: at + "x", Name: "x"}, io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("of nothing: %v", err)
	}
	if err := b.api.GetFiles(t.Context(), &bangerv1.GetFilesRequest{Vm: "a", Path: at}, io.Discard); !fault.Is(err, fault.Invalid) {
		t.Errorf("without a name: %v", err)
	}
	if err := b.api.PutFiles(t.Context(), &bangerv1.PutFilesStart{Vm: "none", Path: at}, strings.NewReader("")); !fault.Is(err, fault.NotFound) {
		t.Errorf("to no VM: %v", err)
	}
}

// TestBrokenPut wants nothing under the file's name, nor beside it, of a copy whose source breaks off or whose client goes
// away, and a retry to work.
func TestBrokenPut(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	dir := t.TempDir()
	at := filepath.Join(dir, "f")
	start := &bangerv1.PutFilesStart{Vm: "a", Path: at}
	whole := oneFile(t, "f", 1<<20)
	empty := func(when string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			entries, err := os.ReadDir(dir)
			if err == nil && len(entries) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v, %v", when, entries, err)
			}
		}
	}
	broken := errors.New("the disk is broken")
	if err := b.api.PutFiles(t.Context(), start, io.MultiReader(bytes.NewReader(whole[:600_000]), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	empty("after a broken source")
	if err := b.api.PutFiles(t.Context(), start, bytes.NewReader(whole[:600_000])); !fault.Is(err, fault.Invalid) {
		t.Errorf("a cut archive: %v", err)
	}
	empty("after a cut archive")
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(whole[:600_000])
		cancel()
		_ = w.CloseWithError(ctx.Err())
	}()
	if err := b.api.PutFiles(ctx, start, r); err == nil {
		t.Error("a client that went away has copied")
	}
	empty("after the client's end")
	if err := b.api.PutFiles(t.Context(), start, bytes.NewReader(whole)); err != nil {
		t.Errorf("the retry: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
