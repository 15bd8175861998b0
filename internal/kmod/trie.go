package kmod

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// trie is an index from names to values in the format of kmod's .bin files (kmod, libkmod/libkmod-index.h): a radix tree
// whose nodes are written after their children. Numbers are big-endian.
type trie struct {
	prefix   string // what the node adds to the character that led to it
	children map[byte]*trie
	values   []value
}

type value struct {
	priority int // the least comes first
	text     string
}

const (
	trieMagic   = 0xB007F457
	trieVersion = 0x00020001

	// Flags in the offset of a node say what it has.
	hasPrefix   = 0x80000000
	hasValues   = 0x40000000
	hasChildren = 0x20000000
)

// insert adds a value. The key is ASCII.
func (t *trie) insert(key, text string, priority int) {
	if t.children == nil && t.values == nil {
		t.prefix, t.values = key, []value{{priority, text}} // the first of all
		return
	}
	n := 0
	for n < len(key) && n < len(t.prefix) && key[n] == t.prefix[n] {
		n++
	}
	if n < len(t.prefix) { // the node splits
		rest := &trie{prefix: t.prefix[n+1:], children: t.children, values: t.values}
		*t = trie{prefix: t.prefix[:n], children: map[byte]*trie{t.prefix[n]: rest}}
	}
	if n == len(key) {
		t.values = append(t.values, value{priority, text})
		return
	}
	child := t.children[key[n]]
	if child == nil {
		child = &trie{}
		if t.children == nil {
			t.children = map[byte]*trie{}
		}
		t.children[key[n]] = child
	}
	child.insert(key[n+1:], text, priority)
}

// encode returns the file.
func (t *trie) encode() []byte {
	be := binary.BigEndian
	out := be.AppendUint32(nil, trieMagic)
	out = be.AppendUint32(out, trieVersion)
	out = be.AppendUint32(out, 0)
	out, root := t.write(out)
	be.PutUint32(out[8:], root)
	return out
}

// write appends the node and those below it, and returns its offset with its flags.
func (t *trie) write(out []byte) (_ []byte, offset uint32) {
	be := binary.BigEndian
	first, last := byte(0xff), byte(0)
	for c := range t.children {
		first, last = min(first, c), max(last, c)
	}
	var below []uint32
	for c := int(first); c <= int(last); c++ {
		var at uint32
		if child := t.children[byte(c)]; child != nil { // a byte
			out, at = child.write(out)
		}
		below = append(below, at)
	}
	offset = uint32(len(out)) // a few MB
	if t.prefix != "" {
		offset |= hasPrefix
		out = append(append(out, t.prefix...), 0)
	}
	if len(below) > 0 {
		offset |= hasChildren
		out = append(out, first, last)
		for _, at := range below {
			out = be.AppendUint32(out, at)
		}
	}
	if len(t.values) > 0 {
		offset |= hasValues
		out = be.AppendUint32(out, uint32(len(t.values))) // few
		slices.SortStableFunc(t.values, func(a, b value) int { return cmp.Compare(a.priority, b.priority) })
		for _, v := range t.values {
			out = be.AppendUint32(out, uint32(v.priority)) // a count of modules
			out = append(append(out, v.text...), 0)
		}
	}
	return out, offset
}
