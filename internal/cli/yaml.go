package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"
)

// writeYAML writes a value as YAML 1.2, by way of its JSON: the same names in the same order. YAML takes JSON's scalars
// as they are, so this needs no more than blocks and indentation.
func writeYAML(w io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	root, err := readNode(dec)
	if err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	var b strings.Builder
	root.write(&b, 0)
	_, err = io.WriteString(w, b.String())
	return err
}

// yamlNode is a JSON value with its keys in order.
type yamlNode struct {
	scalar string // as it is written; for empty lists and maps too
	list   bool
	keys   []string // of a map
	items  []*yamlNode
}

func readNode(dec *json.Decoder) (*yamlNode, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return &yamlNode{scalar: yamlScalar(token)}, nil
	}
	n := &yamlNode{list: delim == '['}
	for dec.More() {
		if !n.list {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			n.keys = append(n.keys, yamlScalar(key))
		}
		item, err := readNode(dec)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item)
	}
	if _, err := dec.Token(); err != nil { // the closing bracket
		return nil, err
	}
	if len(n.items) == 0 {
		n.scalar = map[bool]string{true: "[]", false: "{}"}[n.list]
	}
	return n, nil
}

// write writes a node whose first line begins at column indent, where the cursor is.
func (n *yamlNode) write(b *strings.Builder, indent int) {
	if n.scalar != "" {
		b.WriteString(n.scalar + "\n")
		return
	}
	for i, item := range n.items {
		if i > 0 {
			b.WriteString(strings.Repeat(" ", indent))
		}
		switch {
		case n.list:
			b.WriteString("- ")
		case item.scalar != "":
			b.WriteString(n.keys[i] + ": ")
		default:
			b.WriteString(n.keys[i] + ":\n" + strings.Repeat(" ", indent+2))
		}
		item.write(b, indent+2)
	}
}

// yamlPlain are the strings that need no quotes, but for the words that mean something else.
var yamlPlain = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_/.+-]*( [A-Za-z0-9_/.+-]+)*$`)

func yamlScalar(token json.Token) string {
	s, ok := token.(string)
	if ok && yamlPlain.MatchString(s) {
		switch strings.ToLower(s) {
		case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		default:
			return s
		}
	}
	text, err := json.Marshal(token)
	if err != nil {
		return `""` // not reached: the token came from JSON
	}
	// JSON lets control characters from U+007F on stand as they are, YAML does not (YAML 1.2.2, 5.1).
	var b strings.Builder
	for _, r := range string(text) {
		if unicode.IsControl(r) || r == 0xFEFF {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
