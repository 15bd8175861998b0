package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of the log of a daemon that runs in the background.
const (
	maxLogSize  = 10 << 20 // bytes of one file
	maxLogFiles = 3        // daemon.log, daemon.log.1, daemon.log.2
)

// logWriter returns what the daemon logs to: standard error. If that is the file at path, as it is for a daemon that a command
// has started, the file is rotated when it has become too large.
func logWriter(path string) io.Writer {
	st, err := os.Stderr.Stat()
	at, atErr := os.Lstat(path)
	if err != nil || atErr != nil || !os.SameFile(st, at) {
		return os.Stderr
	}
	return &logFile{path: path, most: maxLogSize, files: maxLogFiles, file: os.Stderr, size: st.Size(), redirect: asStderr}
}

// asStderr makes a file standard error, so that what the runtime says of a crash gets into it, too.
func asStderr(f *os.File) error { return unix.Dup3(int(f.Fd()), 2, 0) }

// logFile is a log that is rotated: daemon.log becomes daemon.log.1, and so on. What cannot be rotated goes on growing: a log
// that is too large is better than none.
type logFile struct {
	path     string
	most     int64 // bytes
	files    int
	redirect func(*os.File) error

	mu   sync.Mutex // held over a write, which keeps lines whole
	file *os.File
	size int64 // about: others may write into the file, too
}

// Write implements [io.Writer].
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var failure error
	if l.size > 0 && l.size+int64(len(p)) > l.most {
		failure = l.rotate()
		l.size = 0 // after a failure it is tried again that much later
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	if failure != nil {
		_, _ = fmt.Fprintf(l.file, "level=WARN msg=\"rotate the log\" err=%q\n", failure)
	}
	return n, err
}

// rotate begins a new file. The old one stays open until the new one has taken its place.
func (l *logFile) rotate() error {
	now, err := l.file.Stat()
	if err != nil {
		return err
	}
	at, err := os.Lstat(l.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && os.SameFile(now, at) { // else somebody has taken it away
		for i := l.files - 1; i > 0; i-- {
			if err := os.Rename(l.name(i-1), l.name(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := l.redirect(f); err != nil {
		_ = f.Close()
		return err
	}
	if l.file != os.Stderr {
		_ = l.file.Close()
	}
	l.file = f
	return nil
}

// name is that of the i-th newest file.
func (l *logFile) name(i int) string {
	if i == 0 {
		return l.path
	}
	return l.path + "." + strconv.Itoa(i)
}
