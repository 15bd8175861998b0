package kernels

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/progress"
)

// maxDownload bounds what is fetched for a kernel, in bytes; stalled is after how long without a byte it is given up.
const (
	maxDownload = 2 << 30
	stalled     = time.Minute
)

// download fetches the file of an entry to the cache and returns its path. What an earlier attempt left is continued; what
// is not what the catalogue says is removed.
func (s *Store) download(ctx context.Context, r recipe, sink progress.Sink) (_ string, err error) {
	stage := "download " + path.Base(r.URL)
	defer func(end func(error)) { end(err) }(sink.Stage(stage))
	if err := os.MkdirAll(s.downloads, 0o700); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	file := filepath.Join(s.downloads, r.SHA256)
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", fmt.Errorf("open cache: %w", err)
	}
	defer f.Close() //nolint:errcheck // it is hashed before it is used
	// Two entries may name one file.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return "", fault.New(fault.Busy, "another download of %s is under way", r.URL)
	}
	if s.verify(f, r) == nil {
		return file, nil
	}
	if err := s.transfer(ctx, f, r.URL, func(done, total int64) {
		sink.Send(progress.Update{Stage: stage, Current: done, Total: total, Unit: "bytes"})
	}); err != nil {
		return "", fault.New(fault.Unavailable, "download %s: %w", r.URL, err).
			WithHint("check the network and try again: it goes on where it ended")
	}
	if err := s.verify(f, r); err != nil {
		return "", errors.Join(err, os.Remove(file))
	}
	return file, nil
}

// verify compares a file's content with what the catalogue says.
func (s *Store) verify(f *os.File, r recipe) error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, maxDownload)); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != r.SHA256 {
		return fault.New(fault.Corrupt, "what came from %s is not what the catalogue says: SHA-256 %s instead of %s", r.URL, got, r.SHA256).
			WithHint("the file there has changed, or somebody is in the way: correct the catalogue's entry only if you know why")
	}
	return nil
}

// transfer appends to the file what it lacks of the content at a URL.
func (s *Store) transfer(ctx context.Context, f *os.File, from string, tell func(done, total int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alarm := time.AfterFunc(stalled, func() { cancel(fmt.Errorf("nothing came for %v", stalled)) })
	defer alarm.Stop()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	res, err := http.DefaultClient.Do(req) // it follows ten redirections at most
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	defer res.Body.Close() //nolint:errcheck // only read
	switch res.StatusCode {
	case http.StatusPartialContent:
		if want := fmt.Sprintf("bytes %d-", have); len(res.Header.Get("Content-Range")) < len(want) || res.Header.Get("Content-Range")[:len(want)] != want {
			return errors.New("the server sent another part than it was asked for")
		}
	case http.StatusOK:
		have = 0 // from the beginning
	case http.StatusRequestedRangeNotSatisfiable:
		return errors.Join(errors.New("the server has less than is here; try again"), f.Truncate(0))
	default:
		return fmt.Errorf("the server said %s", res.Status)
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return err
	}
	if err := f.Truncate(have); err != nil {
		return err
	}
	total := have + max(res.ContentLength, 0)
	buf := make([]byte, 256<<10)
	for done := have; ; {
		n, err := res.Body.Read(buf)
		if n > 0 {
			alarm.Reset(stalled)
			if done += int64(n); done > maxDownload {
				return fmt.Errorf("more than %d MiB came", maxDownload>>20)
			}
			if _, err := f.Write(buf[:n]); err != nil {
				return err
			}
			tell(done, max(total, done))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
	}
}
