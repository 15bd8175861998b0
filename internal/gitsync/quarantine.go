package gitsync

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1" //nolint:gosec // the hash of git's objects
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/fault"
)

// quarantine is a bare repository in a directory of its own, in which objects wait that came from a guest. It has the
// objects of the base repository as alternates, and a configuration of our own.
type quarantine struct {
	dir   string // the repository
	hash  func() hash.Hash
	limit int64 // of one object, in bytes
	known map[string]bool
}

// newQuarantine makes the repository dir/git.
func newQuarantine(ctx context.Context, dir, base string, limit int64) (*quarantine, error) {
	q := &quarantine{dir: filepath.Join(dir, "git"), hash: sha1.New, limit: limit, known: map[string]bool{}}
	// A git older than 2.28 knows one format only and repeats the question.
	format, err := gitText(ctx, call{gitDir: base, clean: true, args: []string{"rev-parse", "--show-object-format"}})
	if err != nil {
		return nil, fmt.Errorf("read the repository %s: %w", base, err)
	}
	initialise := []string{"init", "--quiet", "--bare", "--template="}
	if format == "sha256" {
		q.hash = sha256.New
		initialise = append(initialise, "--object-format=sha256")
	}
	if err := git(ctx, call{dir: dir, clean: true, args: append(initialise, q.dir)}, nil); err != nil {
		return nil, fmt.Errorf("make a quarantine: %w", err)
	}
	objects, err := gitText(ctx, call{gitDir: base, clean: true, args: []string{"rev-parse", "--path-format=absolute", "--git-path", "objects"}})
	if err != nil {
		return nil, fmt.Errorf("find the objects of %s: %w", base, err)
	}
	info := filepath.Join(q.dir, "objects", "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return nil, fmt.Errorf("make a quarantine: %w", err)
	}
	// Quoted as in C, for a path may begin with a quote or have a newline in it (gitrepository-layout(5)).
	if err := os.WriteFile(filepath.Join(info, "alternates"), []byte(quoteC(objects)+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("make a quarantine: %w", err)
	}
	return q, nil
}

// quoteC quotes a path as git reads it in lists of paths, unless it needs no quoting.
func quoteC(path string) string {
	if !strings.ContainsAny(path, "\"\\\n\r\t#") {
		return path
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(path) + `"`
}

func (q *quarantine) call(args ...string) call { return call{gitDir: q.dir, clean: true, args: args} }

// isID reports whether a text is the id of an object.
func (q *quarantine) isID(s string) bool {
	if len(s) != 2*q.hash().Size() {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// small objects are hashed before anything is written: most are known.
const small = 1 << 20

// add makes an object of size bytes of r and returns its id. One that is known is not written again.
func (q *quarantine) add(kind string, size int64, r io.Reader) (string, error) {
	if size > q.limit {
		return "", fault.New(fault.Exhausted, "an object of %d bytes is larger than the limit of %d", size, q.limit)
	}
	header := fmt.Sprintf("%s %d\x00", kind, size)
	h := q.hash()
	_, _ = io.WriteString(h, header)
	level := zlib.NoCompression
	if size <= small {
		content := make([]byte, size)
		if _, err := io.ReadFull(r, content); err != nil {
			return "", fmt.Errorf("read an object: %w", err)
		}
		_, _ = h.Write(content)
		id := hex.EncodeToString(h.Sum(nil))
		if q.known[id] {
			return id, nil
		}
		// Read once more, from memory.
		level, r, h = zlib.BestSpeed, bytes.NewReader(content), q.hash()
		_, _ = io.WriteString(h, header)
	}
	return q.write(header, size, level, h, r)
}

// write stores a loose object. h has seen the header.
func (q *quarantine) write(header string, size int64, level int, h hash.Hash, r io.Reader) (id string, err error) {
	objects := filepath.Join(q.dir, "objects")
	f, err := os.CreateTemp(objects, "incoming-")
	if err != nil {
		return "", fmt.Errorf("store an object: %w", err)
	}
	defer func() {
		if err = closeAfter(f, err); err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	z, err := zlib.NewWriterLevel(f, level)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(z, header); err != nil {
		return "", fmt.Errorf("store an object: %w", err)
	}
	if _, err := io.CopyN(io.MultiWriter(z, h), r, size); err != nil {
		return "", fmt.Errorf("store an object: %w", err)
	}
	if err := z.Close(); err != nil {
		return "", fmt.Errorf("store an object: %w", err)
	}
	id = hex.EncodeToString(h.Sum(nil))
	dir := filepath.Join(objects, id[:2])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("store an object: %w", err)
	}
	q.known[id] = true
	return id, os.Rename(f.Name(), filepath.Join(dir, id[2:]))
}

func closeAfter(c io.Closer, err error) error {
	if cerr := c.Close(); err == nil {
		return cerr
	}
	return err
}

// writeTree makes a tree of entries by path and returns its id. Git checks the paths once more, and that the objects are
// there.
func (q *quarantine) writeTree(ctx context.Context, entries map[string]treeEntry) (string, error) {
	paths := make([]string, 0, len(entries))
	for p := range entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	var list bytes.Buffer
	for _, p := range paths {
		fmt.Fprintf(&list, "%s %s\t%s\x00", entries[p].mode, entries[p].id, p)
	}
	index := filepath.Join(q.dir, "tree-index")
	defer os.Remove(index) //nolint:errcheck // the quarantine goes anyway
	c := q.call("update-index", "-z", "--index-info")
	c.env, c.stdin = []string{"GIT_INDEX_FILE=" + index}, &list
	if err := git(ctx, c, nil); err != nil {
		return "", fmt.Errorf("make a tree: %w", err)
	}
	c = q.call("write-tree")
	c.env = []string{"GIT_INDEX_FILE=" + index}
	id, err := gitText(ctx, c)
	if err != nil {
		return "", fmt.Errorf("make a tree: %w", err)
	}
	return id, nil
}
