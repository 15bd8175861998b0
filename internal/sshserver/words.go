package sshserver

import (
	"errors"
	"strings"

	"banger/internal/fault"
)

// errNeedsShell is the error of a command line that is more than words.
var errNeedsShell = errors.New("the command line uses what only a shell understands")

// splitWords splits a command line as a POSIX shell would (Shell Command Language, 2.2), as long as it is nothing but words:
// anything that a shell would expand, redirect or control is errNeedsShell.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	open := false // a word has begun, be it empty
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case ' ', '\t':
			if open {
				words, open = append(words, word.String()), false
				word.Reset()
			}
		case '\'':
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				return nil, fault.New(fault.Invalid, "a quote in the command line has no end")
			}
			word.WriteString(line[i+1 : i+1+end])
			i += end + 1
			open = true
		case '"':
			n, err := doubleQuoted(line[i+1:], &word)
			if err != nil {
				return nil, err
			}
			i += n
			open = true
		case '\\':
			if i+1 == len(line) || line[i+1] == '\n' {
				return nil, errNeedsShell
			}
			i++
			word.WriteByte(line[i])
			open = true
		case '|', '&', ';', '<', '>', '(', ')', '$', '`', '\n', '*', '?', '[':
			return nil, errNeedsShell
		case '#', '~', '=', '%', '{', '!':
			// What these mean depends on where they stand: at the beginning, or, for an assignment, in the first word.
			if !open || c == '=' && len(words) == 0 {
				return nil, errNeedsShell
			}
			word.WriteByte(c)
		default:
			word.WriteByte(c)
			open = true
		}
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// doubleQuoted appends what is quoted at the beginning of rest, and returns how many bytes of rest that takes.
func doubleQuoted(rest string, word *strings.Builder) (int, error) {
	for i := 0; i < len(rest); i++ {
		switch c := rest[i]; c {
		case '"':
			return i + 1, nil
		case '$', '`':
			return 0, errNeedsShell
		case '\\':
			if i+1 < len(rest) && strings.IndexByte("$`\"\\", rest[i+1]) >= 0 {
				i++
				word.WriteByte(rest[i])
				continue
			}
			word.WriteByte(c)
		default:
			word.WriteByte(c)
		}
	}
	return 0, fault.New(fault.Invalid, "a quote in the command line has no end")
}
