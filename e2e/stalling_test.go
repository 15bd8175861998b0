//go:build vm

package e2e

import (
	"context"
	"net/http"
	"os"
	"strings"
	"time"
)

// stalling makes a registry wait after the first MiB of a layer, as long as a file is there.
func stalling(h http.Handler, file string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			w = &stallingWriter{ResponseWriter: w, ctx: r.Context(), file: file, left: 1 << 20}
		}
		h.ServeHTTP(w, r)
	})
}

// stallingWriter is an answer that stops after some bytes as long as a file is there.
type stallingWriter struct {
	http.ResponseWriter
	ctx  context.Context //nolint:containedctx // of the request that is answered
	file string
	left int // bytes until it stops
}

func (w *stallingWriter) Write(p []byte) (int, error) {
	first := min(len(p), w.left)
	n, err := w.ResponseWriter.Write(p[:first])
	if w.left -= n; err != nil || n == len(p) {
		return n, err
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return n, err
	}
	for {
		if _, err := os.Stat(w.file); err != nil {
			break
		}
		select {
		case <-w.ctx.Done():
			return n, context.Cause(w.ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
	m, err := w.ResponseWriter.Write(p[first:])
	return n + m, err
}
