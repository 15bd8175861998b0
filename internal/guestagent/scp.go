package guestagent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// scp is the far end of scp's old protocol, which is documented by its source only: lines that announce a file (C), a directory (D) and
// its end (E), or times (T); each is answered by a zero byte, or by 1 (a warning) or 2 (the end) and a line of text.
type scp struct {
	r *bufio.Reader
	w io.Writer

	recursive, times, intoDir bool
	failed                    bool // something was warned of
}

// scpLine is the longest line that is taken, in bytes.
const scpLine = 8 << 10

// errSCP ends a conversation that makes no sense, or that the other end has given up.
var errSCP = errors.New("lost the other end")

func scpMain(args []string, in io.Reader, out, stderr io.Writer) int {
	s := &scp{r: bufio.NewReaderSize(in, 64<<10), w: out}
	var sink, source bool
	paths := args
	for len(paths) > 0 && len(paths[0]) > 1 && paths[0][0] == '-' {
		word := paths[0]
		paths = paths[1:]
		if word == "--" {
			break
		}
		for _, c := range word[1:] {
			switch c {
			case 't':
				sink = true
			case 'f':
				source = true
			case 'r':
				s.recursive = true
			case 'p':
				s.times = true
			case 'd':
				s.intoDir = true
			case 'v', 'q':
			default:
				_, _ = fmt.Fprintf(stderr, "scp: unknown option -%c\n", c)
				return 2
			}
		}
	}
	var err error
	switch {
	case sink == source, len(paths) == 0, sink && len(paths) != 1:
		_, _ = fmt.Fprintln(stderr, "scp: this end takes -t and a path, or -f and paths")
		return 2
	case sink:
		err = s.receive(paths[0])
	default:
		err = s.send(paths)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "scp:", err)
		return 1
	}
	if s.failed {
		return 1
	}
	return 0
}

func (s *scp) ok() error {
	_, err := s.w.Write([]byte{0})
	return err
}

// warn tells the other end of what could not be done; the rest goes on.
func (s *scp) warn(err error) error {
	s.failed = true
	_, err = fmt.Fprintf(s.w, "\x01scp: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	return err
}

// answer reads what the other end says to a line of ours. ok is false if it does not want what was announced.
func (s *scp) answer() (ok bool, err error) {
	switch c, err := s.r.ReadByte(); {
	case err != nil:
		return false, errSCP
	case c == 0:
		return true, nil
	case c == 1:
		s.failed = true
		_, err := s.line()
		return false, err
	default:
		return false, errSCP
	}
}

// line reads a line without its end.
func (s *scp) line() (string, error) {
	var b strings.Builder
	for b.Len() <= scpLine {
		c, err := s.r.ReadByte()
		if err != nil {
			return "", errSCP
		}
		if c == '\n' {
			return b.String(), nil
		}
		b.WriteByte(c)
	}
	return "", fmt.Errorf("protocol error: a line of more than %d bytes", scpLine)
}

// entry is a line C or D.
type scpEntry struct {
	mode fs.FileMode
	size int64
	name string
}

func parseSCPEntry(line string) (scpEntry, error) {
	bad := fmt.Errorf("protocol error: %q", clip(line, 80))
	words := strings.SplitN(line[1:], " ", 3)
	if len(words) != 3 {
		return scpEntry{}, bad
	}
	mode, err1 := strconv.ParseUint(words[0], 8, 16)
	size, err2 := strconv.ParseUint(words[1], 10, 62)
	name := words[2]
	if err1 != nil || err2 != nil || mode > 0o7777 || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return scpEntry{}, bad
	}
	return scpEntry{mode: fs.FileMode(mode), size: int64(size), name: name}, nil //nolint:gosec // bounded by ParseUint
}

// parseSCPTimes reads "Tmtime microseconds atime microseconds".
func parseSCPTimes(line string) ([2]time.Time, error) {
	words := strings.Fields(line[1:])
	var n [4]int64
	for i := range n {
		if len(words) != len(n) {
			return [2]time.Time{}, fmt.Errorf("protocol error: %q", clip(line, 80))
		}
		v, err := strconv.ParseInt(words[i], 10, 62)
		if err != nil || i%2 == 1 && (v < 0 || v >= 1e6) {
			return [2]time.Time{}, fmt.Errorf("protocol error: %q", clip(line, 80))
		}
		n[i] = v
	}
	return [2]time.Time{time.Unix(n[0], n[1]*1000), time.Unix(n[2], n[3]*1000)}, nil
}

// receive takes what the other end sends to a path: into it if it is a directory, else by its name.
func (s *scp) receive(target string) error {
	if target == "" {
		target = "."
	}
	if s.intoDir && !isDir(target) {
		_, _ = fmt.Fprintf(s.w, "\x02scp: %s: not a directory\n", target)
		return fmt.Errorf("%s: not a directory", target)
	}
	if err := s.ok(); err != nil {
		return err
	}
	return s.receiveInto(target, 0)
}

// scpDepth is how deep directories may be.
const scpDepth = 512

// receiveInto ends with the other end's last word, or, below the first level, with the end of the directory, still unanswered.
func (s *scp) receiveInto(target string, depth int) error {
	if depth > scpDepth {
		return errors.New("directories are nested too deeply")
	}
	var times *[2]time.Time
	for {
		if _, err := s.r.Peek(1); errors.Is(err, io.EOF) && depth == 0 {
			return nil
		}
		line, err := s.line()
		if err != nil {
			return err
		}
		if line == "" {
			return errors.New("protocol error: an empty line")
		}
		switch line[0] {
		case 1:
			s.failed = true
		case 2:
			return errors.New(clip(line[1:], 200))
		case 'E':
			if depth == 0 {
				return errors.New("protocol error: the end of no directory")
			}
			return nil
		case 'T':
			t, err := parseSCPTimes(line)
			if err != nil {
				return err
			}
			times = &t
			if err := s.ok(); err != nil {
				return err
			}
		case 'C', 'D':
			if err := s.receiveEntry(target, line, times, depth); err != nil {
				return err
			}
			times = nil
		default:
			return fmt.Errorf("protocol error: %q", clip(line, 80))
		}
	}
}

// receiveEntry takes what a line C or D announces.
func (s *scp) receiveEntry(target, line string, times *[2]time.Time, depth int) error {
	e, err := parseSCPEntry(line)
	if err != nil {
		return err
	}
	path := target
	if isDir(target) {
		path = filepath.Join(target, e.name)
	}
	if line[0] == 'D' {
		return s.receiveDir(path, e, times, depth)
	}
	return s.receiveFile(path, e, times)
}

func (s *scp) receiveFile(path string, e scpEntry, times *[2]time.Time) error {
	// Not blocking: nobody may read from a pipe of that name.
	f, fail := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, e.mode.Perm())
	if fail != nil {
		return s.warn(fail) // the other end then sends nothing of it
	}
	defer f.Close() //nolint:errcheck // closed below, or not to be kept
	if err := s.ok(); err != nil {
		return err
	}
	left := e.size
	for buf := make([]byte, 32<<10); left > 0; {
		n, err := s.r.Read(buf[:min(int64(len(buf)), left)])
		if err != nil {
			return errSCP
		}
		left -= int64(n)
		if fail == nil {
			_, fail = f.Write(buf[:n]) // a full disk: the rest is read all the same
		}
	}
	if fail == nil && s.times {
		fail = os.Chmod(path, fileMode(e.mode))
	}
	if err := f.Close(); fail == nil {
		fail = err
	}
	if fail == nil && times != nil {
		fail = setTimes(path, *times)
	}
	if _, err := s.answer(); err != nil {
		return err
	}
	if fail != nil {
		return s.warn(fail)
	}
	return s.ok()
}

func (s *scp) receiveDir(path string, e scpEntry, times *[2]time.Time, depth int) error {
	if !s.recursive {
		return errors.New("protocol error: a directory without -r")
	}
	made := !isDir(path)
	if made {
		if err := os.Mkdir(path, e.mode.Perm()|0o700); err != nil {
			return s.warn(err)
		}
	}
	if err := s.ok(); err != nil {
		return err
	}
	if err := s.receiveInto(path, depth+1); err != nil {
		return err
	}
	var fail error
	if times != nil {
		fail = setTimes(path, *times)
	}
	switch { // last, for it may forbid the rest
	case s.times:
		fail = errors.Join(fail, os.Chmod(path, fileMode(e.mode)))
	case made && e.mode&0o700 != 0o700:
		if info, err := os.Stat(path); err == nil { // what the umask has left of it
			fail = errors.Join(fail, os.Chmod(path, info.Mode().Perm()&e.mode))
		}
	}
	if fail != nil {
		return s.warn(fail)
	}
	return s.ok()
}

// fileMode turns permission bits as chmod(2) has them into fs's.
func fileMode(bits fs.FileMode) fs.FileMode {
	mode := bits.Perm()
	for bit, flag := range map[fs.FileMode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if bits&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

func setTimes(path string, t [2]time.Time) error {
	return os.Chtimes(path, t[1], t[0])
}

// send sends files, or whatever their names as patterns match.
func (s *scp) send(paths []string) error {
	if ok, err := s.answer(); err != nil || !ok {
		return err
	}
	for _, path := range paths {
		found, err := filepath.Glob(path)
		if _, there := os.Stat(path); err != nil || len(found) == 0 || there == nil {
			found = []string{path}
		}
		for _, p := range found {
			if err := s.sendPath(p, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *scp) sendPath(path string, depth int) error {
	// Not blocking: a pipe that nobody writes to must not hold up everything.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return s.warn(err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	name := filepath.Base(path)
	switch {
	case err != nil:
		return s.warn(err)
	case strings.Contains(name, "\n"):
		return s.warn(fmt.Errorf("%q: the protocol has no room for such a name", path))
	case info.IsDir() && !s.recursive:
		return s.warn(fmt.Errorf("%s: not a regular file", path))
	case info.IsDir():
		return s.sendDir(f, name, info, depth)
	case !info.Mode().IsRegular():
		return s.warn(fmt.Errorf("%s: not a regular file", path))
	}
	if ok, err := s.announce('C', name, info); err != nil || !ok {
		return err
	}
	n, fail := io.Copy(s.w, io.LimitReader(f, info.Size()))
	if missing := info.Size() - n; missing > 0 { // it has shrunk, or can't be read: what was announced must come
		if fail == nil {
			fail = fmt.Errorf("%s: it has shrunk meanwhile", path)
		}
		if _, err := io.CopyN(s.w, padding{}, missing); err != nil {
			return errSCP
		}
	}
	if fail != nil {
		err = s.warn(fail)
	} else {
		err = s.ok()
	}
	if err != nil {
		return err
	}
	_, err = s.answer()
	return err
}

func (s *scp) sendDir(f *os.File, name string, info fs.FileInfo, depth int) error {
	if depth > scpDepth {
		return s.warn(fmt.Errorf("%s: directories are nested too deeply", f.Name()))
	}
	if ok, err := s.announce('D', name, info); err != nil || !ok {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		if err := s.warn(err); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := s.sendPath(filepath.Join(f.Name(), n), depth+1); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(s.w, "E\n"); err != nil {
		return errSCP
	}
	_, err = s.answer()
	return err
}

// announce says what comes, and its times before that if they are wanted.
func (s *scp) announce(kind byte, name string, info fs.FileInfo) (ok bool, err error) {
	if s.times {
		at, micros := info.ModTime(), info.ModTime().Nanosecond()/1000
		if at.Unix() < 0 { // the protocol has no such time
			at, micros = time.Unix(0, 0), 0
		}
		if _, err := fmt.Fprintf(s.w, "T%d %d %d %d\n", at.Unix(), micros, at.Unix(), micros); err != nil {
			return false, errSCP
		}
		if ok, err := s.answer(); err != nil || !ok {
			return false, err
		}
	}
	mode, size := info.Mode().Perm(), info.Size()
	for bit, flag := range map[fs.FileMode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if info.Mode()&flag != 0 {
			mode |= bit
		}
	}
	if kind == 'D' {
		size = 0
	}
	if name == "." || name == "/" {
		name = "root" // no name of a file; the other end names it as it likes
	}
	if _, err := fmt.Fprintf(s.w, "%c%04o %d %s\n", kind, uint32(mode), size, name); err != nil {
		return false, errSCP
	}
	return s.answer()
}

// padding reads as zeros.
type padding struct{}

func (padding) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
