package config

import (
	"bytes"
	"maps"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// flatten returns the values of a TOML document by dotted key. A table with nothing in it is a value too, so that an
// empty unknown section does not go unnoticed; an empty known section is dropped.
func flatten(prefix string, tree map[string]any) map[string]any {
	leaves := map[string]any{}
	for key, value := range tree {
		path := segment(key)
		if prefix != "" {
			path = prefix + "." + path
		}
		table, ok := value.(map[string]any)
		switch {
		case ok && len(table) > 0:
			maps.Copy(leaves, flatten(path, table))
		case ok && isSection(path):
		default:
			leaves[path] = value
		}
	}
	return leaves
}

// segment keeps a quoted key that holds a dot apart from two keys.
func segment(key string) string {
	if strings.Contains(key, ".") {
		return strconv.Quote(key)
	}
	return key
}

func isSection(path string) bool {
	var c Config
	for key := range c.settings() {
		if strings.HasPrefix(key, path+".") {
			return true
		}
	}
	return false
}

// lineOf returns the line, from 1, on which a key or the table that holds it first stands. The document is known to be
// valid TOML.
func lineOf(text []byte, key string) int {
	var p unstable.Parser
	p.Reset(text)
	section := ""
	best, line := 0, 1 // the longest part of the key found so far
	for p.NextExpression() {
		node := p.Expression()
		path := keyOf(node)
		switch node.Kind {
		case unstable.Table, unstable.ArrayTable:
			section = path
		default:
			if section != "" {
				path = section + "." + path
			}
		}
		if (key == path || strings.HasPrefix(key, path+".")) && len(path) > best {
			best, line = len(path), 1+bytes.Count(text[:offset(&p, node)], []byte("\n"))
		}
	}
	return line
}

func keyOf(node *unstable.Node) string {
	var parts []string
	for it := node.Key(); it.Next(); {
		parts = append(parts, segment(string(it.Node().Data)))
	}
	return strings.Join(parts, ".")
}

func offset(p *unstable.Parser, node *unstable.Node) int {
	it := node.Key()
	if !it.Next() {
		return 0
	}
	return p.Shape(it.Node().Raw).Start.Offset
}
