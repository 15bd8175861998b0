package gitsync

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // the hash of git's indexes
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"

	"banger/internal/fault"
)

// normaliseIndex makes of the copied index one that stands alone: no shared part, no cache, whole in a sparse checkout, and
// fresh, so that the guest need not read files that have not been changed.
func (p *part) normaliseIndex(ctx context.Context) error {
	if _, err := os.Stat(p.index()); errors.Is(err, fs.ErrNotExist) {
		// Nothing has ever been added.
		if err := git(ctx, p.call("read-tree", "--empty"), nil); err != nil {
			return fmt.Errorf("make an empty index: %w", err)
		}
	}
	c := p.call("update-index", "-q", "--unmerged", "--ignore-submodules", "--refresh")
	c.config = []string{"core.splitIndex=false", "index.sparse=false"}
	if err := git(ctx, c, nil); err != nil {
		return fmt.Errorf("refresh a copy of the index: %w", err)
	}
	c.args = []string{"update-index", "--no-split-index", "--index-version", "2", "--force-write-index"}
	if err := git(ctx, c, nil); err != nil {
		return fmt.Errorf("rewrite a copy of the index: %w", err)
	}
	return nil
}

// hashOf returns the hash that a repository uses.
func (p *part) hashOf(ctx context.Context) (func() hash.Hash, error) {
	format, err := gitText(ctx, p.call("rev-parse", "--show-object-format"))
	if err != nil {
		return nil, fmt.Errorf("read the format of %s: %w", p.top, err)
	}
	if format == "sha256" {
		return sha256.New, nil
	}
	return sha1.New, nil
}

// withoutExtensions returns an index of version 2 or 3 without what git keeps behind the entries to be quick: trees that the
// guest does not have, for one (gitformat-index(5)).
func withoutExtensions(index []byte, h hash.Hash) ([]byte, error) {
	const header, stat, flagExtended = 12, 40, 0x4000
	corrupt := fault.New(fault.Corrupt, "the index of git is damaged")
	if len(index) < header || string(index[:4]) != "DIRC" {
		return nil, corrupt
	}
	version, count := binary.BigEndian.Uint32(index[4:]), binary.BigEndian.Uint32(index[8:])
	if version != 2 && version != 3 {
		return nil, fault.New(fault.Unsupported, "the index of git has version %d", version)
	}
	at := header
	for range count {
		name := at + stat + h.Size() + 2
		if name > len(index) {
			return nil, corrupt
		}
		if binary.BigEndian.Uint16(index[name-2:])&flagExtended != 0 {
			name += 2
		}
		if name > len(index) {
			return nil, corrupt
		}
		end := bytes.IndexByte(index[name:], 0)
		if end < 0 {
			return nil, corrupt
		}
		at += (name + end - at + 8) &^ 7 // at least one NUL, up to a multiple of eight
		if at > len(index) {
			return nil, corrupt
		}
	}
	h.Reset()
	_, _ = h.Write(index[:at])
	return h.Sum(index[:at:at]), nil
}
