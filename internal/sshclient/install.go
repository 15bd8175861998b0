package sshclient

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"banger/internal/fault"
)

// The lines around what is banger's.
const (
	blockBegin = "# BEGIN banger (banger ssh-config --uninstall removes this block)\n"
	blockAlone = "# banger made this file, too\n"
	blockEnd   = "# END banger\n"
)

// Install makes the configuration at path, which may be missing, include another file, and reports whether that is news. The block
// stands first in the file, because further down it would belong to a Host or Match.
func Install(path, include string) (changed bool, err error) {
	if strings.ContainsAny(include, "\"\n\r\x00*?[") {
		return false, fault.New(fault.Unsupported, "ssh's configuration can't include the path %q", include)
	}
	return edit(path, func(before string, missing bool) (string, error) {
		rest, alone, err := without(path, before)
		if err != nil {
			return "", err
		}
		block := blockBegin
		if missing || alone {
			block += blockAlone
		}
		return block + `Include "` + include + "\"\n" + blockEnd + rest, nil
	})
}

// Uninstall takes the block out again, whatever else has become of the file, and reports whether it was there. A file that Install
// has made, and that nobody has put anything into, goes too.
func Uninstall(path string) (changed bool, err error) {
	return edit(path, func(before string, _ bool) (string, error) {
		rest, alone, err := without(path, before)
		if alone && rest == "" {
			return "", errRemove
		}
		return rest, err
	})
}

// errRemove asks edit to remove the file.
var errRemove = errors.New("remove the file")

// without returns a configuration without the block, and whether the block says that its file is banger's.
func without(path, text string) (rest string, alone bool, err error) {
	begin := 0
	for !strings.HasPrefix(text[begin:], blockBegin) {
		next := strings.IndexByte(text[begin:], '\n')
		if next < 0 {
			return text, false, nil
		}
		begin += next + 1
	}
	inside := text[begin+len(blockBegin):]
	end := strings.Index(inside, blockEnd)
	if end < 0 || strings.Contains(inside[:end], blockBegin) || end > 0 && inside[end-1] != '\n' {
		return "", false, fault.New(fault.Corrupt, "%s has the beginning of banger's block and not its end", path).
			WithHint("take out the lines from %q on that are banger's", strings.TrimSpace(blockBegin))
	}
	rest = text[:begin] + inside[end+len(blockEnd):]
	if strings.Contains(rest, blockBegin) {
		return "", false, fault.New(fault.Corrupt, "%s has banger's block twice", path).WithHint("take one of them out")
	}
	return rest, strings.HasPrefix(inside, blockAlone), nil
}

// edit replaces a file by what change makes of it. It is there whole at every moment; symbolic links to it, its mode and
// its owner stay.
func edit(path string, change func(text string, missing bool) (string, error)) (changed bool, err error) {
	target, err := filepath.EvalSymlinks(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing {
		if _, dangling := os.Lstat(path); dangling == nil {
			return false, fault.New(fault.Precondition, "%s is a symbolic link to nothing", path).WithHint("remove it or make what it points to")
		}
		target, err = path, nil
	}
	var text []byte
	var info fs.FileInfo
	if err == nil && !missing {
		if info, err = os.Stat(target); err == nil {
			text, err = os.ReadFile(target)
		}
	}
	if err != nil {
		return false, fault.New(fault.KindOf(err), "read ssh's configuration: %w", err)
	}
	after, err := change(string(text), missing)
	switch {
	case errors.Is(err, errRemove):
		if err := os.Remove(target); err != nil {
			return false, fmt.Errorf("remove ssh's configuration that banger made: %w", err)
		}
		return true, nil
	case err != nil, after == string(text):
		return false, err
	}
	if err := replace(target, after, info); err != nil {
		return false, fmt.Errorf("change ssh's configuration: %w", err)
	}
	return true, nil
}

// replace writes a file by way of another beside it. info is that of the file so far, or nil.
func replace(target, text string, info fs.FileInfo) (err error) {
	dir := filepath.Dir(target)
	if info == nil {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(dir, ".banger-") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.WriteString(text)
	if err == nil && info != nil {
		err = f.Chmod(info.Mode().Perm())
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && err == nil && os.Geteuid() == 0 {
			err = f.Chown(int(owner.Uid), int(owner.Gid))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), target)
}

// WriteFile writes a configuration such that it is there whole or as it was.
func WriteFile(path, text string) error {
	_, err := edit(path, func(string, bool) (string, error) { return text, nil })
	return err
}
