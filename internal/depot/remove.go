package depot

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/fault"
)

// Remove deletes a directory tree. It refuses if anything is mounted in it: a killed build may have left the host's /dev
// bound there.
func Remove(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(abs); os.IsNotExist(err) {
		return nil
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if at, err := mountBelow(f, abs); err != nil {
		return fmt.Errorf("read mount table: %w", err)
	} else if at != "" {
		return fault.New(fault.Precondition, "%s is still mounted", at).WithHint("unmount it: sudo umount -R %s", at)
	}
	return os.RemoveAll(path)
}

// mountBelow returns a mount point at or below dir, in a table as proc(5) describes it.
func mountBelow(table io.Reader, dir string) (string, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	s := bufio.NewScanner(table)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape.Replace(fields[4])
		if at == dir || strings.HasPrefix(at, dir+"/") {
			return at, nil
		}
	}
	return "", s.Err()
}
