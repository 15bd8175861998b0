// Package kmod reads Linux kernel modules and makes the indexes of a directory of them that modprobe and udev read: what
// depmod(8) does when a kernel is installed, without that program, and safe for modules from anywhere.
//
// It owns the format of the indexes. It doesn't own where modules come from, nor which are loaded. Modules are foreign:
// what they say is checked, and a module that can't be read is left out of the indexes, as nobody could load it.
package kmod

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds an unpacked module, in bytes.
const maxModule = 64 << 20

// Read returns a module's content, unpacked if its name says that it is packed (.gz, .xz, .zst).
func Read(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxModule {
		return nil, fmt.Errorf("read %s: absurd size", filepath.Base(file))
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	content, err := unpack(filepath.Ext(file), raw)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", filepath.Base(file), err)
	}
	return content, nil
}

func unpack(suffix string, raw []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch suffix {
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(raw))
	case ".zst":
		var d *zstd.Decoder
		d, err = zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderMaxMemory(maxModule), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err == nil {
			defer d.Close()
			r = d
		}
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(raw))
	default:
		return raw, nil
	}
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(content) > maxModule {
		err = errors.New("absurd size")
	}
	return content, err
}

// IsModule reports whether a file's name is that of a module.
func IsModule(name string) bool {
	for _, suffix := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// Canonical returns a module's name from its name or path: the file's base without suffixes, with - and _ made equal, as
// the kernel does.
func Canonical(name string) string {
	name = path.Base(name)
	for _, suffix := range []string{".gz", ".xz", ".zst", ".ko"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return strings.ReplaceAll(name, "-", "_")
}

// module is what a module says of itself.
type module struct {
	path     string // relative to the directory
	name     string
	depends  []string
	aliases  []string
	softdeps []string
}

// maxWords bounds each list that a module gives; network drivers have some hundred aliases.
const maxWords = 10_000

// parse reads the section .modinfo of a module: "key=value" texts, each ended by a zero (include/linux/moduleinfo.h).
func parse(file string, content []byte) (module, error) {
	m := module{path: file, name: Canonical(file)}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return m, err
	}
	defer f.Close() //nolint:errcheck // it closes nothing
	section := f.Section(".modinfo")
	if section == nil || section.Size > maxModule {
		return m, errors.New("no module information")
	}
	info, err := section.Data()
	if err != nil {
		return m, err
	}
	for text := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(text), "=")
		if !plain(value) {
			continue
		}
		switch {
		case key == "depends":
			for dep := range strings.SplitSeq(value, ",") {
				if dep != "" && len(m.depends) < maxWords {
					m.depends = append(m.depends, Canonical(dep))
				}
			}
		case key == "alias" && len(m.aliases) < maxWords && !strings.ContainsAny(value, " \t"):
			m.aliases = append(m.aliases, value)
		case key == "softdep" && len(m.softdeps) < maxWords:
			m.softdeps = append(m.softdeps, value)
		}
	}
	return m, nil
}

// plain reports whether a text may stand in an index: one line of ASCII.
func plain(s string) bool {
	return s != "" && len(s) < 4096 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
