package cgroup

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxLine bounds a line of the files of procfs that are read, in bytes.
const maxLine = 64 << 10

// Find looks where this process can make groups. For each controller that cannot be had there is a reason, in words.
func Find() (Place, map[Controller]string) { return find("/proc/self", "") }

// find reads the files of a process in procfs; root stands before the mount points that they name.
func find(procSelf, root string) (Place, map[Controller]string) {
	place, missing := Place{}, map[Controller]string{}
	mounts, own, err := read(procSelf)
	if err != nil {
		for _, c := range []Controller{CPU, IO, Memory, Pids} {
			missing[c] = err.Error()
		}
		return place, missing
	}
	for _, c := range []Controller{CPU, IO, Memory, Pids} {
		missing[c] = "the host has no cgroups with this controller"
		for _, m := range mounts {
			path, isIn := own[m.hierarchy(c)]
			if !isIn {
				continue
			}
			dir, ok := m.directory(root, path)
			if !ok {
				missing[c] = "this process's own cgroup is not visible here"
				continue
			}
			parent, err := m.try(c, dir, root)
			if err == nil {
				place[c] = parent
				delete(missing, c)
				break
			}
			missing[c] = err.Error()
		}
	}
	return place, missing
}

// mount is a mounted hierarchy of cgroups.
type mount struct {
	point, root string
	version     int
	controllers []string // of version 1
}

// legacy is what version 1 calls a controller.
func legacy(c Controller) string {
	if c == IO {
		return "blkio"
	}
	return string(c)
}

// hierarchy returns the controllers by which /proc/self/cgroup names the hierarchy, if it may have a controller: "" with
// version 2.
func (m mount) hierarchy(c Controller) string {
	switch {
	case m.version == 2:
		return ""
	case slices.Contains(m.controllers, legacy(c)):
		return legacy(c)
	default:
		return "none of them"
	}
}

// directory returns the directory of a cgroup, which is named relative to the hierarchy's root, below the mount point.
func (m mount) directory(root, path string) (string, bool) {
	rel, err := filepath.Rel(m.root, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.Join(root, m.point, rel), true
}

// try finds where groups with a controller can be made: in the directory of the own cgroup or, with version 2, above it.
func (m mount) try(c Controller, dir, root string) (Parent, error) {
	name, _ := knob(c, m.version, 1)
	if m.version == 1 {
		return Parent{dir, 1}, prove(dir, name)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err != nil || !slices.Contains(strings.Fields(string(b)), string(c)) {
		return Parent{}, fmt.Errorf("%s has no controller %s", dir, c)
	}
	var first error
	for top := filepath.Join(root, m.point); ; dir = filepath.Dir(dir) {
		// It fails if the group has processes, or another owner; what counts is whether it works afterwards.
		_ = write(filepath.Join(dir, "cgroup.subtree_control"), "+"+string(c))
		err := prove(dir, name)
		if err == nil {
			// To move a process takes the right to write to the cgroup that both places have above them.
			err = writable(filepath.Join(dir, "cgroup.procs"))
		}
		if err == nil {
			return Parent{dir, 2}, nil
		}
		if first == nil {
			first = err
		}
		if dir == top || len(dir) <= len(top) {
			return Parent{}, first
		}
	}
}

// prove makes a group, looks whether it has the file that sets the limit, and removes it.
func prove(dir, name string) error {
	trial := filepath.Join(dir, prefix+"trial-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(trial, 0o755); err != nil { // as all cgroups
		return err
	}
	defer os.Remove(trial) //nolint:errcheck // nothing can be in it
	return writable(filepath.Join(trial, name))
}

func writable(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// read reads which hierarchies are mounted, and in which cgroups of them the process is: by each of the names that
// version 1 has for the hierarchy, and by "" for version 2.
func read(procSelf string) (mounts []mount, own map[string]string, err error) {
	info, err := os.Open(filepath.Join(procSelf, "mountinfo"))
	if err != nil {
		return nil, nil, err
	}
	defer info.Close() //nolint:errcheck // read only
	groups, err := os.Open(filepath.Join(procSelf, "cgroup"))
	if err != nil {
		return nil, nil, err
	}
	defer groups.Close() //nolint:errcheck // read only
	return parseMounts(info), parseOwn(groups), nil
}

// parseMounts reads the cgroup mounts of a mountinfo (proc_pid_mountinfo(5)): field 4 is what of the hierarchy is mounted,
// field 5 where; after a lone "-" come type, source and options, which with version 1 are the controllers.
func parseMounts(r io.Reader) []mount {
	var mounts []mount
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 {
			continue
		}
		m := mount{root: unescape(fields[3]), point: unescape(fields[4])}
		switch tail[0] {
		case "cgroup2":
			m.version = 2
		case "cgroup":
			m.version, m.controllers = 1, strings.Split(tail[2], ",")
		default:
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// parseOwn reads /proc/self/cgroup (cgroups(7)): lines of number, controllers and path.
func parseOwn(r io.Reader) map[string]string {
	own := map[string]string{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) < 3 || !strings.HasPrefix(fields[2], "/") {
			continue
		}
		for name := range strings.SplitSeq(fields[1], ",") {
			own[name] = fields[2]
		}
	}
	return own
}

// unescape undoes the octal escapes of space, tab, newline and backslash in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
