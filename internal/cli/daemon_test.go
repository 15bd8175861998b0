package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// reactor is an output that does something when a text has come.
type reactor struct {
	text strings.Builder
	on   map[string]func() error // each is done once
}

func (r *reactor) Write(p []byte) (int, error) {
	n, err := r.text.Write(p)
	for text, act := range r.on {
		if strings.Contains(r.text.String(), text) {
			delete(r.on, text)
			err = errors.Join(err, act())
		}
	}
	return n, err
}

func TestDaemonLogsFollowsRotation(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	dir := filepath.Join(b.env["HOME"], ".local/state/banger")
	path := filepath.Join(dir, "daemon.log")
	write := func(text string) error {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), write("one\n")); err != nil {
		t.Fatal(err)
	}
	out := &reactor{on: map[string]func() error{
		"one": func() error { return errors.Join(write("two\n"), os.Rename(path, path+".1"), write("three\n")) },
		"three": func() error {
			b.signals <- syscall.SIGINT
			return nil
		},
	}}
	b.stdout = out
	b.run("daemon", "logs", "--follow").want(t, 130, "", "banger: interrupted\n")
	if out.text.String() != "one\ntwo\nthree\n" {
		t.Errorf("it printed %q", out.text.String())
	}
}
