package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func openLogFile(t *testing.T, most int64) *logFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "daemon.log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l := &logFile{path: path, most: most, files: 3, file: f, redirect: func(*os.File) error { return nil }}
	t.Cleanup(func() { _ = l.file.Close() })
	return l
}

// TestLogIsBounded has many write at once: lines stay whole, the newest are kept, and the files do not grow beyond bounds.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	const most = 1000
	l := openLogFile(t, most)
	redirected := 0
	l.redirect = func(*os.File) error { redirected++; return nil }
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 100 {
				if _, err := fmt.Fprintf(l, "writer %d line %03d\n", w, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if _, err := fmt.Fprintln(l, "the last"); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(filepath.Dir(l.path))
	if err != nil || len(entries) != 3 || redirected < 5 {
		t.Fatalf("%v, %v; redirected %d times", entries, err, redirected)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(l.path), e.Name()))
		if err != nil || len(text) == 0 || len(text) > most {
			t.Errorf("%s has %d bytes, %v", e.Name(), len(text), err)
		}
		for line := range strings.Lines(string(text)) {
			if len(line) != len("writer 0 line 000\n") && line != "the last\n" {
				t.Errorf("%s has a line %q", e.Name(), line)
			}
		}
		if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), st.Mode(), err)
		}
	}
	if text, _ := os.ReadFile(l.path); !strings.HasSuffix(string(text), "the last\n") {
		t.Errorf("the newest file ends with %q", text)
	}
}

func TestLogGoesOnWithoutRotation(t *testing.T) {
	t.Parallel()
	l := openLogFile(t, 20)
	l.redirect = func(*os.File) error { return errors.New("no descriptor") }
	for range 3 {
		if _, err := fmt.Fprintln(l, "0123456789abcd"); err != nil {
			t.Fatal(err)
		}
	}
	all, _ := os.ReadFile(l.path + ".1")
	if got := strings.Count(string(all), "0123456789abcd"); got != 3 || !strings.Contains(string(all), "no descriptor") {
		t.Errorf("the log has %q", all)
	}
}

// TestLogTakenAway: whoever moves the log away finds it as it was, and a new one is begun.
func TestLogTakenAway(t *testing.T) {
	t.Parallel()
	l := openLogFile(t, 20)
	_, _ = fmt.Fprintln(l, "0123456789abcd")
	if err := os.Rename(l.path, l.path+".mine"); err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(l, "fedcba9876543210")
	mine, _ := os.ReadFile(l.path + ".mine")
	current, _ := os.ReadFile(l.path)
	if string(mine) != "0123456789abcd\n" || string(current) != "fedcba9876543210\n" {
		t.Errorf("%q, %q", mine, current)
	}
}

// TestLogWriter: only the daemon's own log file is rotated, not what else standard error may be.
func TestLogWriter(t *testing.T) {
	t.Parallel()
	if w := logWriter(filepath.Join(t.TempDir(), "daemon.log")); w != os.Stderr {
		t.Errorf("without a log file: %T", w)
	}
}
