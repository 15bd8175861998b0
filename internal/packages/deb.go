package packages

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

const arMagic = "!<arch>\n"

// maxControl bounds a package's description, in bytes.
const maxControl = 1 << 20

// openDeb reads a Debian package (deb(5)): an ar archive of debian-binary, control.tar and data.tar, in this order.
func (p *Package) openDeb(r *bufio.Reader) error {
	if _, err := r.Discard(len(arMagic)); err != nil {
		return err
	}
	version, size, err := nextMember(r)
	if err != nil {
		return err
	}
	if version != "debian-binary" || size > 64 {
		return errors.New("not a Debian package")
	}
	text := make([]byte, size+size&1)
	if _, err := io.ReadFull(r, text); err != nil {
		return err
	}
	if !strings.HasPrefix(string(text), "2.") {
		return fmt.Errorf("a Debian package of the unknown format %.10q", text)
	}
	for {
		name, size, err := nextMember(r)
		if err != nil {
			return fmt.Errorf("find data.tar: %w", err)
		}
		member := io.LimitReader(r, size)
		switch {
		case strings.HasPrefix(name, "control.tar"):
			p.readControl(member)
		case strings.HasPrefix(name, "data.tar"):
			content, end, err := unpacked(bufio.NewReaderSize(member, 1<<20))
			if err != nil {
				return fmt.Errorf("unpack data.tar: %w", err)
			}
			p.close, p.next = end, nextOfTar(tar.NewReader(content))
			return nil
		}
		left := size + size&1 // members begin at even places
		if l, ok := member.(*io.LimitedReader); ok {
			left = l.N + size&1
		}
		if _, err := io.CopyN(io.Discard, r, left); err != nil {
			return err
		}
	}
}

// nextMember reads the header of an archive's next member: 60 bytes of text (ar(5)).
func nextMember(r io.Reader) (name string, size int64, err error) {
	var h [60]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return "", 0, err
	}
	if h[58] != '`' || h[59] != '\n' {
		return "", 0, errors.New("bad header of an archive member")
	}
	size, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 {
		return "", 0, errors.New("bad size of an archive member")
	}
	return strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/"), size, nil
}

// readControl takes name and version from the package's description. What can't be read is left out: the files count.
func (p *Package) readControl(r io.Reader) {
	content, end, err := unpacked(bufio.NewReader(r))
	if err != nil {
		return
	}
	defer end()
	for t := tar.NewReader(io.LimitReader(content, maxControl)); ; {
		h, err := t.Next()
		if err != nil {
			return
		}
		if strings.TrimPrefix(h.Name, "./") != "control" {
			continue
		}
		text, _ := io.ReadAll(t)
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			switch name {
			case "Package":
				p.Name = printable(value)
			case "Version":
				p.Version = printable(value)
			}
		}
		return
	}
}

// printable is a foreign text that may be shown.
func printable(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 200 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return s
}

func nextOfTar(t *tar.Reader) func() (Entry, io.Reader, error) {
	return func() (Entry, io.Reader, error) {
		h, err := t.Next()
		if err != nil {
			return Entry{}, nil, err
		}
		mode := h.FileInfo().Mode()
		if h.Typeflag == tar.TypeLink {
			mode = fs.ModeIrregular | mode.Perm()
		}
		return Entry{Name: h.Name, Mode: mode, Size: h.Size}, t, nil
	}
}
