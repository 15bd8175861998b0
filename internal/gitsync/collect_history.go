package gitsync

import (
	"archive/tar"
	"bytes"
	"compress/zlib"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// Bounds of the text files of a guest's repository, in bytes, and of the names in them.
const (
	maxRefsText = 64 << 20
	maxRefText  = 4096
	maxPacks    = 1000 // each costs a process
)

// history is what is taken of a guest's repository: packs, loose objects and the names of commits. All else in it
// (configuration, hooks, alternates, index, attributes) is not even read.
type history struct {
	c      *Changes
	q      *quarantine
	dir    string // for packs until they are checked
	limits Limits
	total  int64 // bytes unpacked so far
	head   string
	refs   map[string]string
	packs  []string
	damage error // the first reason for which nothing of it is taken
	seen   bool
}

func newHistory(c *Changes) *history {
	return &history{c: c, q: c.q, dir: filepath.Join(c.dir, "packs"), limits: c.limits, refs: map[string]string{}}
}

// entry takes one entry of the guest's .git. Errors are those of the archive and of the host; what is wrong with the content
// is remembered.
func (s *history) entry(h *tar.Header, name string, content io.Reader) error {
	if h.Typeflag != tar.TypeReg || s.damage != nil {
		return nil
	}
	s.seen = true
	dir, base := path.Split(name)
	switch {
	case name == "HEAD":
		s.head = s.text(content, h.Size, maxRefText)
	case name == "packed-refs":
		for ref, id := range parsePackedRefs(s.text(content, h.Size, maxRefsText)) {
			if _, loose := s.refs[ref]; !loose {
				s.refs[ref] = id
			}
		}
	case strings.HasPrefix(name, "refs/heads/"):
		if id := strings.TrimSpace(s.text(content, h.Size, maxRefText)); s.q.isID(id) {
			s.refs[name] = id
		}
	case dir == "objects/pack/" && strings.HasSuffix(base, ".pack"):
		return s.pack(content)
	case len(dir) == len("objects/xx/") && strings.HasPrefix(dir, "objects/"):
		id := strings.TrimSuffix(strings.TrimPrefix(dir, "objects/"), "/") + base
		if s.q.isID(id) {
			return s.loose(id, content)
		}
	}
	return nil
}

func (s *history) text(r io.Reader, size, limit int64) string {
	if size > limit {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		s.damage = err
	}
	return string(b)
}

// parsePackedRefs reads the text of packed-refs (gitrepository-layout(5)).
func parsePackedRefs(text string) map[string]string {
	refs := map[string]string{}
	for line := range strings.Lines(text) {
		id, ref, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if ok && strings.HasPrefix(ref, "refs/heads/") {
			refs[ref] = id
		}
	}
	return refs
}

// commit returns the id that the guest's HEAD comes to.
func (s *history) commit() (string, error) {
	head := strings.TrimSpace(s.head)
	if ref, symbolic := strings.CutPrefix(head, "ref:"); symbolic {
		head = s.refs[strings.TrimSpace(ref)]
	}
	if head != "" && !s.q.isID(head) {
		return "", errors.New("its HEAD names no commit")
	}
	return head, nil
}

// loose takes a loose object: its content is unpacked within bounds, has to have the hash that its name says, and is stored
// anew.
func (s *history) loose(id string, content io.Reader) error {
	if s.q.known[id] {
		return nil
	}
	z, err := zlib.NewReader(content)
	if err != nil {
		return s.damaged(err, "the object %s is damaged: %w", id, err)
	}
	kind, size, err := parseLooseHeader(z)
	if err != nil {
		return s.damaged(err, "the object %s: %w", id, err)
	}
	if s.total += size; size > s.limits.Object || s.total > s.limits.Total {
		s.damage = fmt.Errorf("the object %s is larger than the limit", id)
		return nil
	}
	got, err := s.q.add(kind, size, z)
	switch {
	case err != nil:
		return s.damaged(err, "the object %s is damaged: %w", id, err)
	case got != id:
		s.damage = fmt.Errorf("the object %s is in truth %s", id, got)
	}
	return nil
}

// damaged remembers what is wrong with the guest's content, unless it is the host that failed.
func (s *history) damaged(err error, format string, args ...any) error {
	if _, ok := errors.AsType[*os.PathError](err); ok || fault.KindOf(err) == fault.Exhausted {
		return err
	}
	s.damage = fmt.Errorf(format, args...)
	return nil
}

// parseLooseHeader reads "type size NUL" (gitformat-loose, "loose object format").
func parseLooseHeader(r io.Reader) (kind string, size int64, err error) {
	var header []byte
	b := make([]byte, 1)
	for len(header) < 32 {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", 0, err
		}
		if b[0] == 0 {
			break
		}
		header = append(header, b[0])
	}
	kind, digits, _ := strings.Cut(string(header), " ")
	switch kind {
	case "blob", "tree", "commit", "tag":
	default:
		return "", 0, errors.New("no type that git knows")
	}
	if size, err = strconv.ParseInt(digits, 10, 64); err != nil || size < 0 || strconv.FormatInt(size, 10) != digits {
		return "", 0, errors.New("no size")
	}
	return kind, size, nil
}

// pack keeps a pack until the archive is read.
func (s *history) pack(content io.Reader) error {
	if len(s.packs) >= maxPacks {
		s.damage = fmt.Errorf("it has more than %d packs: run git gc in the guest", maxPacks)
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("keep a pack: %w", err)
	}
	f, err := os.Create(filepath.Join(s.dir, strconv.Itoa(len(s.packs))))
	if err != nil {
		return fmt.Errorf("keep a pack: %w", err)
	}
	_, err = io.Copy(f, content)
	s.packs = append(s.packs, f.Name())
	return closeAfter(f, err)
}

// take brings the guest's objects into the quarantine and finds its commits. It returns the paths that its last
// commit has. Whatever is wrong with the guest's repository costs its commits and is a notice.
func (s *history) take(ctx context.Context) (tracked map[string]bool, err error) {
	if !s.seen {
		s.c.note("the workspace has no repository any more: commits made in the guest are not known")
		return nil, nil
	}
	commit, err := s.ingest(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil && commit != "" && commit != s.c.base.Head {
		err = s.checkCommits(ctx, commit)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		s.c.note("commits made in the guest are left out, their changes are not: %s", oneLine(err.Error()))
		return nil, nil
	}
	if commit == "" || commit == s.c.base.Head {
		return nil, nil
	}
	s.c.commit = commit
	entries, err := readTree(ctx, s.q.dir, commit)
	if err != nil {
		return nil, err
	}
	tracked = make(map[string]bool, len(entries))
	for p := range entries {
		tracked[p] = true
	}
	return tracked, nil
}

func oneLine(s string) string {
	if len(s) > 400 {
		s = s[:400] + "..."
	}
	return strings.Trim(strconv.Quote(s), `"`)
}

// ingest checks and indexes the packs, and returns the guest's commit.
func (s *history) ingest(ctx context.Context) (string, error) {
	if s.damage != nil {
		return "", s.damage
	}
	commit, err := s.commit()
	if err != nil || commit == "" || commit == s.c.base.Head {
		return "", err
	}
	for _, name := range s.packs {
		if err := s.takePack(ctx, name); err != nil {
			return "", err
		}
	}
	return commit, nil
}

func (s *history) takePack(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	total, err := scanPack(f, s.q.hash().Size(), s.limits.Object, s.limits.Total-s.total)
	if err != nil {
		return fmt.Errorf("a pack of the guest: %w", err)
	}
	s.total += total
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	in := s.q.call("index-pack", "--stdin", "--threads=1", "--max-input-size="+strconv.FormatInt(s.limits.Archive, 10))
	in.stdin = f
	return git(ctx, in, nil)
}

// checkCommits makes sure that a commit builds on the base, that all it needs is there and sound, and that no commit on the
// way brings submodules along.
func (s *history) checkCommits(ctx context.Context, commit string) error {
	kind, err := gitText(ctx, s.q.call("cat-file", "-t", commit))
	if err != nil || kind != "commit" {
		return errors.New("its HEAD is no commit that is there")
	}
	if s.c.base.Head != "" {
		err := git(ctx, s.q.call("merge-base", "--is-ancestor", s.c.base.Head, commit), nil)
		if hostexec.ExitCode(err) == 1 {
			return errors.New("they do not build on the commit that was shipped")
		} else if err != nil {
			return err
		}
	}
	pack := filepath.Join(s.c.dir, "checked.pack")
	if err := s.c.writePack(ctx, commit, pack); err != nil {
		return err
	}
	if err := s.c.checkPack(ctx, pack); err != nil {
		return err
	}
	return s.checkSubmodules(ctx, commit)
}

// writePack writes a pack with all that a commit has and the base has not.
func (c *Changes) writePack(ctx context.Context, commit, name string) error {
	revs := commit + "\n"
	if c.base.Head != "" {
		revs += "^" + c.base.Head + "\n"
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	in := c.q.call("pack-objects", "--revs", "--stdout", "--quiet", "--threads=1", "--delta-base-offset")
	in.stdin = strings.NewReader(revs)
	return closeAfter(f, git(ctx, in, &boundedWriter{w: f, left: c.limits.Archive}))
}

// checkPack reads a pack into a repository that has nothing but it and the base, with all of git's checks on each object and
// on the links between them.
func (c *Changes) checkPack(ctx context.Context, name string) error {
	dir, err := os.MkdirTemp(c.dir, "check-")
	if err != nil {
		return err
	}
	clean, err := newQuarantine(ctx, dir, c.base.Repo, c.limits.Object)
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	in := clean.call("index-pack", "--stdin", "--strict", "--threads=1")
	in.stdin = f
	return git(ctx, in, nil)
}

// checkSubmodules refuses commits that add submodules or change what is known of them.
func (s *history) checkSubmodules(ctx context.Context, commit string) error {
	args := []string{"log", "--format=", "--raw", "--no-abbrev", "--no-renames", "-z", "-m", "--root", commit}
	if s.c.base.Head != "" {
		args = append(args, "^"+s.c.base.Head)
	}
	fields, err := gitFields(ctx, s.q.call(args...))
	if err != nil {
		return err
	}
	for i := 0; i+1 < len(fields); i++ {
		meta, ok := strings.CutPrefix(fields[i], ":")
		if !ok {
			continue
		}
		i++
		modes := strings.Fields(meta)
		if len(modes) < 2 || modes[0] == modeSubmodule || modes[1] == modeSubmodule || isModules(fields[i]) {
			return fmt.Errorf("they change a submodule: %s", quotePath(fields[i]))
		}
		if err := checkPath(fields[i]); err != nil {
			return err
		}
	}
	return nil
}

// packHeader is the beginning of a pack: the magic, a version, and the number of objects (gitformat-pack).
func packHeader(b []byte) (count uint32, err error) {
	version := hex.EncodeToString(b[4:8])
	if !bytes.HasPrefix(b, []byte("PACK")) || version != "00000002" && version != "00000003" {
		return 0, errors.New("no pack")
	}
	return uint32(b[8])<<24 | uint32(b[9])<<16 | uint32(b[10])<<8 | uint32(b[11]), nil
}
