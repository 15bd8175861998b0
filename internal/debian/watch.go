package debian

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"

	"banger/internal/progress"
)

// watcher reads mmdebstrap's messages as they come: it turns them into progress, and keeps what explains a failure. It is
// used by one goroutine at a time.
type watcher struct {
	sink  progress.Sink
	stage string

	line  []byte
	now   string // the step as mmdebstrap calls it
	total int64  // packages to install, summed over apt's runs
	done  int64
	full  bool     // the disk is
	tail  []string // last lines
	errs  []string // last lines that begin with E:
}

const (
	maxWatchedLine = 1000 // bytes; the rest of a line is dropped
	keptLines      = 6
)

// Write takes messages in pieces of any size.
func (w *watcher) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		end := bytes.IndexAny(rest, "\n\r")
		piece := rest
		if end >= 0 {
			piece, rest = rest[:end], rest[end+1:]
		} else {
			rest = nil
		}
		w.line = append(w.line, piece[:min(len(piece), max(0, maxWatchedLine-len(w.line)))]...)
		if end >= 0 {
			w.see(strings.TrimSpace(strings.ToValidUTF8(string(w.line), "?")))
			w.line = w.line[:0]
		}
	}
	return len(p), nil
}

// apt's summary of what it is about to do.
var newlyInstalled = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)

func (w *watcher) see(line string) {
	if line == "" {
		return
	}
	keep := func(lines []string) []string {
		if lines = append(lines, line); len(lines) > keptLines {
			lines = lines[1:]
		}
		return lines
	}
	w.tail = keep(w.tail)
	w.full = w.full || strings.Contains(line, "No space left on device")
	detail := ""
	switch {
	case strings.HasPrefix(line, "E: "):
		w.errs = keep(w.errs)
	case strings.HasPrefix(line, "I: "):
		w.now = step(strings.TrimPrefix(line, "I: "), w.now)
		detail = w.now
	case strings.HasPrefix(line, "Setting up "):
		w.done++
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "Setting up "), " ")
		detail = "set up " + name
	case strings.HasPrefix(line, "Unpacking "):
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "Unpacking "), " ")
		detail = "unpack " + name
	default:
		if m := newlyInstalled.FindStringSubmatch(line); m != nil {
			n, _ := strconv.ParseInt(m[1], 10, 32) // digits by the expression; out of range counts as 0
			w.total += n
		}
	}
	if detail == "" {
		return
	}
	u := progress.Update{Stage: w.stage, Detail: detail}
	if w.total > 0 {
		u.Current, u.Total, u.Unit = min(w.done, w.total), w.total, "packages"
	}
	w.sink.Send(u)
}

// step returns the steps that mean something to people, and otherwise the one before.
func step(message, before string) string {
	for prefix, name := range map[string]string{
		"running apt-get update": "read package index", "downloading packages": "download packages",
		"extracting archives": "extract essential packages", "installing essential": "install essential packages",
		"installing remaining": "install packages", "cleaning package lists": "clean up", "creating tarball": "write image",
	} {
		if strings.HasPrefix(message, prefix) {
			return name
		}
	}
	return before
}

// reason is what to tell of a failure.
func (w *watcher) reason() string {
	if len(w.errs) > 0 {
		return strings.Join(w.errs, "; ")
	}
	return strings.Join(w.tail, "; ")
}
