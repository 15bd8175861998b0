package debian

import (
	"net/url"
	"path"
	"slices"
	"strings"
)

// source is one line of a sources.list.
type source struct {
	uri        string
	suite      string
	components []string
	signedBy   string // empty: not said
	archs      string
}

// parseOneLine reads the one-line format of sources.list(5). Lines that make no sense are left out.
func parseOneLine(text string) []source {
	var out []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "deb")
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], " \t") {
			continue
		}
		rest = strings.TrimSpace(rest)
		var s source
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			rest = after
			for o := range strings.FieldsSeq(options) {
				key, value, _ := strings.Cut(o, "=")
				switch strings.ToLower(key) {
				case "signed-by":
					s.signedBy = strings.Trim(value, `"`)
				case "arch":
					s.archs = value
				}
			}
		}
		words := strings.Fields(rest)
		if len(words) < 3 {
			continue
		}
		s.uri, s.suite, s.components = words[0], words[1], words[2:]
		out = append(out, s)
	}
	return out
}

// parseDeb822 reads the paragraphs of a .sources file (sources.list(5)).
func parseDeb822(text string) []source {
	var out []source
	for _, fields := range paragraphs(text) {
		if strings.EqualFold(fields["enabled"], "no") || !slices.Contains(strings.Fields(fields["types"]), "deb") {
			continue
		}
		for uri := range strings.FieldsSeq(fields["uris"]) {
			for suite := range strings.FieldsSeq(fields["suites"]) {
				out = append(out, source{
					uri: uri, suite: suite, components: strings.Fields(fields["components"]),
					signedBy: fields["signed-by"], archs: fields["architectures"],
				})
			}
		}
	}
	return out
}

// paragraphs reads Debian control data: fields by lower-case name, continuation lines joined by a newline.
func paragraphs(text string) []map[string]string {
	var out []map[string]string
	var cur map[string]string
	last := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case line == "":
			cur, last = nil, ""
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if cur != nil && last != "" {
				cur[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			if cur == nil {
				cur = map[string]string{}
				out = append(out, cur)
			}
			last = strings.ToLower(name)
			cur[last] = strings.TrimSpace(value)
		}
	}
	return out
}

// usable picks from a host's sources those of the Debian archive for one suite, with its updates and security updates.
// Others publish under the same suite names; what tells them apart is that their keys or paths are their own. The result
// is empty unless it holds the suite itself.
func usable(all []source, suite string) []source {
	suites := []string{suite, suite + "-updates", suite + "-security"}
	var out []source
	found := false
	for _, s := range all {
		u, err := url.Parse(s.uri)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.Host == "" {
			continue // media, local files, or credentials, which must not get into an image
		}
		base := path.Base(u.Path)
		official := (base == "debian" || base == "debian-security") &&
			(s.signedBy == "" || strings.HasPrefix(path.Base(s.signedBy), "debian-archive-"))
		if !official || !slices.Contains(suites, s.suite) || !slices.Contains(s.components, "main") || !safe(s.uri) {
			continue
		}
		if slices.ContainsFunc(out, func(o source) bool { return o.uri == s.uri && o.suite == s.suite }) {
			continue
		}
		s.components = []string{"main"} // all that is built from it is in main
		out = append(out, s)
		found = found || s.suite == suite
	}
	if !found {
		return nil
	}
	return out
}

// safe reports whether a word can stand in a sources.list as it is.
func safe(word string) bool {
	return !strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r == '[' || r == ']' || r == '#' || r > '~' })
}
