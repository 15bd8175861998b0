package config

import (
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/internal/fault"
)

// Home is what of the user's own every VM gets into its home directory, when it starts for the first time.
type Home struct {
	Files       Value[[]FileSync]
	GitIdentity Value[bool] // user.name and user.email of the user's git configuration
}

// FileSync is a file or directory of the host that every VM gets.
type FileSync struct {
	Host  string      // absolute, or beginning with "~/"
	Guest string      // relative to the guest's /root
	Mode  fs.FileMode // of files; 0: as on the host
}

// guestHome is where the work disk is mounted in guests.
const guestHome = "/root"

// fileSyncs reads the entries of [[file_sync]].
func fileSyncs(raw any) ([]FileSync, error) {
	list, ok := raw.([]any)
	if !ok {
		return nil, bad(raw, "each entry as [[file_sync]]")
	}
	var out []FileSync
	for _, item := range list {
		table, ok := item.(map[string]any)
		if !ok {
			return nil, bad(item, "each entry as [[file_sync]]")
		}
		f, err := fileSync(table)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o FileSync) bool { return o.Guest == f.Guest }) {
			return nil, fault.New(fault.Invalid, "two entries for the guest's %s/%s", guestHome, f.Guest).WithHint("remove one")
		}
		out = append(out, f)
	}
	return out, nil
}

func fileSync(table map[string]any) (FileSync, error) {
	for key := range table {
		if !slices.Contains([]string{"host", "guest", "mode"}, key) {
			return FileSync{}, fault.New(fault.Invalid, "unknown key %.40s", key).WithHint("the keys of [[file_sync]] are guest, host, mode")
		}
	}
	var f FileSync
	host, _ := table["host"].(string)
	if f.Host = host; !filepath.IsAbs(host) && !strings.HasPrefix(host, "~/") || strings.ContainsRune(host, 0) {
		return f, bad(table["host"], `host = "~/file" or an absolute path`)
	}
	guest := host // the same place in the guest's home
	if raw, given := table["guest"]; given {
		guest, _ = raw.(string)
	}
	var ok bool
	if f.Guest, ok = inHome(guest); !ok {
		return f, bad(guest, `guest = "~/file": a path below %s in the guest`, guestHome)
	}
	if raw, given := table["mode"]; given {
		text, _ := raw.(string)
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode == 0 || mode > 0o777 {
			return f, bad(raw, `mode = "0600"`)
		}
		f.Mode = fs.FileMode(mode)
	}
	return f, nil
}

// inHome returns what a path of the guest is, relative to the home directory there, and whether it lies below it.
func inHome(guest string) (string, bool) {
	rest, ok := strings.CutPrefix(guest, "~/")
	if !ok {
		rest, ok = strings.CutPrefix(guest, guestHome+"/")
	}
	rel := path.Clean(rest)
	return rel, ok && rest != "" && rel != "." && filepath.IsLocal(rest) && !strings.ContainsRune(rest, 0)
}

func boolean(raw any) (bool, error) {
	b, ok := raw.(bool)
	if !ok {
		return false, bad(raw, "true or false")
	}
	return b, nil
}
