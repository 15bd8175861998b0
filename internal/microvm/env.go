package microvm

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"banger/internal/fault"
)

// Limits of an environment, in bytes.
const (
	maxEnvName = 1 << 10
	maxEnvWord = 128<<10 - 1 // NAME=value without its zero byte: MAX_ARG_STRLEN of execve(2)
	maxEnvAll  = 512 << 10   // it travels with each command, together with the command's own words
)

// ValidateEnv checks variables: fault.Invalid for a name that is empty, holds a '=', a space or what is not printable, for a
// value with a zero byte or that is no UTF-8 (the API's strings are), and for what is larger than a command can be given.
func ValidateEnv(env map[string]string) error {
	all := 0
	for name, value := range env {
		if err := validateVariable(name, value); err != nil {
			return err
		}
		all += len(name) + len(value) + 2
	}
	if all > maxEnvAll {
		return fault.New(fault.Invalid, "an environment of %d bytes", all).WithHint("use at most %s in all", FormatSize(maxEnvAll))
	}
	return nil
}

// ValidateEnvWords is ValidateEnv for words of the form NAME=value.
func ValidateEnvWords(words []string) error {
	all := 0
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return fault.New(fault.Invalid, "bad environment variable %q: there is no =", clip(word)).WithHint("write NAME=value")
		}
		if err := validateVariable(name, value); err != nil {
			return err
		}
		all += len(word) + 1
	}
	if all > maxEnvAll {
		return fault.New(fault.Invalid, "an environment of %d bytes", all).WithHint("use at most %s in all", FormatSize(maxEnvAll))
	}
	return nil
}

func validateVariable(name, value string) error {
	odd := func(r rune) bool { return r == '=' || r == ' ' || !unicode.IsPrint(r) }
	switch {
	case name == "" || len(name) > maxEnvName || strings.ContainsFunc(name, odd) || !utf8.ValidString(name):
		return fault.New(fault.Invalid, "bad name %q of an environment variable", clip(name)).
			WithHint("use letters, digits and _, such as HTTP_PROXY")
	case strings.ContainsRune(value, 0) || !utf8.ValidString(value):
		return fault.New(fault.Invalid, "the value of the environment variable %q holds a zero byte, or is no UTF-8", clip(name))
	case len(name)+1+len(value) > maxEnvWord:
		return fault.New(fault.Invalid, "the value of the environment variable %q has %d bytes", clip(name), len(value)).
			WithHint("use less than 128 KiB")
	}
	return nil
}
