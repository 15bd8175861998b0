// Package homefiles collects what the user wants in the home directory of every VM: the files that the configuration
// names, and the user's git identity. It owns what is read of the host for that, which is nothing else; it doesn't own how
// the files get into a guest. It keeps no state: a file is read as it is when a VM starts for the first time.
package homefiles

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/config"
	"banger/internal/fault"
	"banger/internal/hostexec"
)

// Bounds of what one VM gets.
const (
	maxBytes   = 16 << 20 // all files together
	maxEntries = 4096
)

// Source is where the files come from.
type Source struct {
	config config.Home
	home   string // of the user on the host; empty: not known
}

// New returns a source. home is the directory that "~" means on the host.
func New(c config.Home, home string) *Source { return &Source{config: c, home: home} }

// Defaults returns a tar archive of what an image may have its own version of: the git identity. Nil: nothing.
func (s *Source) Defaults(ctx context.Context) ([]byte, error) {
	if !s.config.GitIdentity.Value || s.home == "" {
		return nil, nil
	}
	text := gitIdentity(ctx, s.home)
	if text == "" {
		return nil, nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// git reads it beside ~/.gitconfig, which wins (git-config(1), FILES).
	h := &tar.Header{Typeflag: tar.TypeReg, Name: ".config/git/config", Mode: 0o644, Size: int64(len(text)), ModTime: time.Now()}
	if err := w.WriteHeader(h); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// gitIdentity asks git for the user's name and address. A host without git, or a user without an identity, has none.
func gitIdentity(ctx context.Context, home string) string {
	program, err := hostexec.Look("git", "git")
	if err != nil {
		return ""
	}
	var text strings.Builder
	for _, key := range []string{"name", "email"} {
		var out bytes.Buffer
		// Only the user's own configuration: not that of a repository which the daemon may have been started in.
		err := hostexec.Run(ctx, hostexec.Cmd{
			Path: program, Args: []string{"config", "--global", "--get", "user." + key}, Dir: "/", Stdout: &out,
			Env: []string{"HOME=" + home, "XDG_CONFIG_HOME=" + os.Getenv("XDG_CONFIG_HOME"), "PATH=" + os.Getenv("PATH")},
		})
		value := strings.TrimSpace(out.String())
		if err != nil || value == "" || len(value) > 1024 || strings.ContainsAny(value, "\n\x00") {
			continue
		}
		// As git quotes values itself (git-config(1), CONFIGURATION FILE, Syntax).
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\t", `\t`).Replace(value) + `"`
		fmt.Fprintf(&text, "\t%s = %s\n", key, quoted)
	}
	if text.Len() == 0 {
		return ""
	}
	return "[user]\n" + text.String()
}

// Files returns a tar archive of the files that the configuration names; nil: nothing. What can't be read is left out and
// told to warn.
func (s *Source) Files(ctx context.Context, warn func(string)) ([]byte, error) {
	var b bytes.Buffer
	c := &collector{w: tar.NewWriter(&b), room: maxBytes}
	for _, f := range s.config.Files.Value {
		host := f.Host
		if rest, ok := strings.CutPrefix(host, "~/"); ok {
			if s.home == "" {
				warn(f.Host + " is left out: the user's home directory is not known")
				continue
			}
			host = filepath.Join(s.home, rest)
		}
		if err := c.add(ctx, host, f); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			warn(f.Host + " is left out: " + reason(err))
		}
	}
	if c.entries == 0 {
		return nil, nil
	}
	if err := c.w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// reason leaves out the path that the caller says anyway.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// collector packs files within bounds.
type collector struct {
	w       *tar.Writer
	room    int64
	entries int
}

// add packs one entry of the configuration: a file, or a directory with all that is in it. A link that the configuration
// names is followed; links within a directory are packed as links.
func (c *collector) add(ctx context.Context, host string, f config.FileSync) error {
	info, err := os.Stat(host) // first: opening a pipe would wait for its writer
	if err != nil {
		return err
	}
	switch {
	case info.Mode().IsRegular():
		file, err := os.Open(host)
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // only read
		return c.file(file, f.Guest, f.Mode)
	case info.IsDir():
		return c.tree(ctx, host, f)
	default:
		return fault.New(fault.Invalid, "it is neither a file nor a directory")
	}
}

func (c *collector) tree(ctx context.Context, host string, f config.FileSync) error {
	root, err := os.OpenRoot(host)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only read
	return fs.WalkDir(root.FS(), ".", func(p string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name := path.Join(f.Guest, p)
		switch {
		case info.IsDir():
			return c.header(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()})
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := root.Readlink(p)
			if err != nil {
				return err
			}
			return c.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: info.ModTime()})
		case info.Mode().IsRegular():
			file, err := root.Open(p)
			if err != nil {
				return err
			}
			defer file.Close() //nolint:errcheck // only read
			return c.file(file, name, f.Mode)
		default:
			return nil // sockets of agents and the like
		}
	})
}

func (c *collector) file(file *os.File, name string, mode fs.FileMode) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if mode == 0 {
		mode = info.Mode().Perm()
	}
	if info.Size() > c.room {
		return fault.New(fault.Exhausted, "all files together have more than %d MiB", maxBytes>>20)
	}
	content, err := io.ReadAll(io.LimitReader(file, c.room+1))
	if err != nil {
		return err
	}
	if int64(len(content)) > c.room {
		return fault.New(fault.Exhausted, "all files together have more than %d MiB", maxBytes>>20)
	}
	c.room -= int64(len(content))
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode), Size: int64(len(content)), ModTime: info.ModTime()}
	if err := c.header(h); err != nil {
		return err
	}
	_, err = c.w.Write(content)
	return err
}

func (c *collector) header(h *tar.Header) error {
	if c.entries++; c.entries > maxEntries {
		return fault.New(fault.Exhausted, "there are more than %d files", maxEntries)
	}
	h.Format = tar.FormatPAX
	return c.w.WriteHeader(h)
}
