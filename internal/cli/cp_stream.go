package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/filetar"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// copying is one copy under way.
type copying struct {
	app     *app
	client  *rpcclient.Client
	options *copyOptions
	display *display

	began   time.Time
	bytes   int64 // of the tar stream so far
	leftOut []string
	missing int // how many were left out
}

// run connects the source with the sink by a pipe. Whichever fails first ends the other, and is the reason.
func (c *copying) run(ctx context.Context, src, dst copyPlace) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.began = time.Now()
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(c.source(ctx, src, w))
	}()
	// A source that is blocked reading standard input does not see the end of the context.
	stop := context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })
	defer stop()
	err := c.sink(ctx, src, dst, &countingReader{r: r, copying: c})
	if err == nil {
		err = drain(r)
	}
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	cancel()
	if !src.isStream() {
		<-ended
	}
	return err
}

// maxPadding is how many bytes may follow the end of an archive. GNU tar rounds up to 10 KiB unless told otherwise.
const maxPadding = 1 << 20

// drain reads what follows the archive's end mark, to learn whether the source has ended well.
func drain(r io.Reader) error {
	switch n, err := io.Copy(io.Discard, io.LimitReader(r, maxPadding)); {
	case err != nil:
		return err
	case n == maxPadding:
		return fault.New(fault.Corrupt, "the archive goes on after its end")
	default:
		return nil
	}
}

// countingReader tells the display how many bytes have come through.
type countingReader struct {
	r io.Reader
	*copying

	told time.Time
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.bytes += int64(n)
	if now := time.Now(); now.Sub(c.told) > drawEvery {
		c.told = now
		c.display.update("", &bangerv1.Progress{Stage: "copy", Current: c.bytes, Unit: "bytes"})
	}
	return n, err
}

func (c *copying) pack(ctx context.Context, src copyPlace, w io.Writer) error {
	path := src.path
	if strings.HasSuffix(path, "/") {
		path += "." // a directory is meant, also behind a symbolic link
	}
	archive := tar.NewWriter(w)
	err := filetar.Pack(ctx, archive, path, filetar.PackOptions{
		Name: src.name(), Follow: c.options.follow, Plain: true, LeftOut: c.leaveOut,
	})
	if err != nil {
		return err
	}
	return archive.Close()
}

func (c *copying) unpack(src, dst copyPlace, r io.Reader) error {
	dest, err := filepath.Abs(dst.path)
	if err != nil {
		return err
	}
	if strings.HasSuffix(dst.path, "/") {
		dest += "/" // Abs drops it
	}
	o := filetar.Options{Foreign: true, LeftOut: c.leaveOut}
	if c.options.archive && os.Geteuid() == 0 {
		o.Owner = &filetar.Owner{Archive: true}
	}
	return filetar.Place(r, dest, src.name(), o)
}

// leaveOut remembers what is not copied.
func (c *copying) leaveOut(name string) {
	if c.missing++; c.missing <= maxLeftOut {
		c.leftOut = append(c.leftOut, name)
	}
}

// maxLeftOut is how many names are told.
const maxLeftOut = 3

func (c *copying) tell() {
	if c.missing == 0 || c.app.quiet {
		return
	}
	more := ""
	if c.missing > len(c.leftOut) {
		more = fmt.Sprintf(" and %d more", c.missing-len(c.leftOut))
	}
	c.app.say("left out, because they are neither files nor directories: %s%s", strings.Join(c.leftOut, ", "), more)
}

// summary says how much was copied and how fast.
func (c *copying) summary() {
	took := max(time.Since(c.began), time.Millisecond)
	rate := int64(float64(c.bytes) / took.Seconds())
	c.app.note("copied %s in %s, %s/s", size(c.bytes), took.Round(time.Millisecond), size(rate))
}
