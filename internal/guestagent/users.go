package guestagent

import (
	"os"
	"slices"
	"strconv"
	"strings"

	"banger/internal/fault"
)

// user is who a command runs as.
type user struct {
	name     string
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
	shell    string
}

// lookupUser finds who "", "name", "uid", "name:group" or "uid:gid" means, given the content of /etc/passwd and /etc/group
// (passwd(5), group(5)). A numeric id needs no entry. Lines that make no sense are skipped.
func lookupUser(spec, passwd, group string) (user, error) {
	who, grp, hasGroup := strings.Cut(spec, ":")
	if who == "" {
		who = "root"
	}
	u, err := findUser(who, passwd)
	if err != nil {
		return user{}, err
	}
	if hasGroup {
		// As with docker: an explicit group is the only one.
		u.gid, err = findGroup(grp, group)
		return u, err
	}
	for _, fields := range lines(group, 4) {
		gid, err := parseID(fields[2])
		if err == nil && gid != u.gid && slices.Contains(strings.Split(fields[3], ","), u.name) {
			u.groups = append(u.groups, gid)
		}
	}
	return u, nil
}

// readUser looks a user up in the guest's files. A missing file is an empty one: images without users still have root.
func readUser(spec string) (user, error) {
	passwd, _ := os.ReadFile("/etc/passwd")
	group, _ := os.ReadFile("/etc/group")
	return lookupUser(spec, string(passwd), string(group))
}

func findUser(who, passwd string) (user, error) {
	id, idErr := parseID(who)
	for _, fields := range lines(passwd, 7) {
		uid, err1 := parseID(fields[2])
		gid, err2 := parseID(fields[3])
		if err1 != nil || err2 != nil || (fields[0] != who && (idErr != nil || uid != id)) {
			continue
		}
		u := user{name: fields[0], uid: uid, gid: gid, home: fields[5], shell: fields[6]}
		if u.home == "" {
			u.home = "/"
		}
		if u.shell == "" {
			u.shell = "/bin/sh"
		}
		return u, nil
	}
	switch {
	case who == "root" || idErr == nil && id == 0:
		return user{name: "root", home: "/root", shell: "/bin/sh"}, nil
	case idErr == nil:
		return user{name: who, uid: id, home: "/", shell: "/bin/sh"}, nil
	default:
		return user{}, fault.New(fault.Invalid, "the guest has no user %q", clip(who, 80))
	}
}

func findGroup(name, group string) (uint32, error) {
	for _, fields := range lines(group, 4) {
		if gid, err := parseID(fields[2]); err == nil && fields[0] == name {
			return gid, nil
		}
	}
	if gid, err := parseID(name); err == nil {
		return gid, nil
	}
	return 0, fault.New(fault.Invalid, "the guest has no group %q", clip(name, 80))
}

// lines splits a file into lines of n fields each; others are left out.
func lines(file string, n int) [][]string {
	var out [][]string
	for line := range strings.Lines(file) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(fields) == n && fields[0] != "" {
			out = append(out, fields)
		}
	}
	return out
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err // 31 bits
}
