package filetar

import (
	"errors"
	"io/fs"
	"os"
)

// parent keeps the directory open in which the newest entry lies. Entries of a directory follow each other, and os.Root
// opens every element of a name anew, for every call: under software emulation that was most of the cost of a small file.
//
// It is of use only as long as nothing on the way to the directory is replaced; whoever replaces something that is no
// regular file leaves it.
type parent struct {
	root *os.Root
	name string // of the open directory, below the root
	dir  *os.Root
}

// enter returns a directory below the root, which is made if it is missing. It is open until the next call or leave.
func (p *parent) enter(name string) (*os.Root, error) {
	if name == "." {
		return p.root, nil
	}
	if p.inside(name) {
		return p.dir, nil
	}
	p.leave()
	dir, err := p.root.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = p.root.MkdirAll(name, 0o755); err == nil {
			dir, err = p.root.OpenRoot(name)
		}
	}
	if err != nil {
		return nil, err
	}
	p.name, p.dir = name, dir
	return dir, nil
}

// inside reports whether a directory is the one that is open.
func (p *parent) inside(name string) bool { return p.dir != nil && p.name == name }

func (p *parent) leave() {
	if p.dir != nil {
		_ = p.dir.Close() // nothing is buffered
		p.name, p.dir = "", nil
	}
}
