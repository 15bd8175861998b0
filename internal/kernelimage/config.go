package kernelimage

import (
	"bytes"
	"strings"
)

// Config is a kernel's build configuration: options without "CONFIG_", with what they are set to. Options that are not
// set are not in it.
type Config map[string]string

// maxOptions bounds the options of a configuration; Linux has some 20,000.
const maxOptions = 100_000

// ParseConfig reads a build configuration. Lines that make no sense are left out, so a text that is none gives none: nil.
func ParseConfig(text []byte) Config {
	var c Config
	for line := range bytes.Lines(text[:min(len(text), maxConfig)]) {
		name, value, ok := strings.Cut(strings.TrimSpace(string(line)), "=")
		if name, prefixed := strings.CutPrefix(name, "CONFIG_"); ok && prefixed && name != "" && len(line) < 4096 {
			if c == nil {
				c = Config{}
			}
			if c[name] = strings.Trim(value, `"`); len(c) >= maxOptions {
				break
			}
		}
	}
	return c
}
