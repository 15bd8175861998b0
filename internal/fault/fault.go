// Package fault is the vocabulary of errors: a small set of kinds, each mapped once to a status code of the API and to
// an exit status of the command line. It owns no behaviour and does no I/O.
//
// An error of this package says three things: what was attempted and why it failed (Message and Err), and what to do
// next (Hint).
package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of failure an error is, so that a caller can decide without reading its text.
type Kind int

// The kinds. Internal is the zero value: an error that nobody classified.
const (
	Internal     Kind = iota // a defect or an unexpected failure of the host
	Invalid                  // the request is wrong and will be wrong again
	NotFound                 // the thing named does not exist
	Exists                   // the name is taken
	Precondition             // the thing is not in a state that allows this
	Busy                     // another operation holds the thing
	Exhausted                // no room: disk, memory, a limit
	Denied                   // not permitted
	Unavailable              // a process or peer that should answer does not
	Timeout                  // a deadline passed
	Canceled                 // the caller gave up
	Unsupported              // this backend or host cannot do it
	Corrupt                  // stored or received data is damaged
)

var kindNames = [...]string{ //nolint:gochecknoglobals // a constant table
	"internal", "invalid", "not-found", "exists", "precondition", "busy", "exhausted",
	"denied", "unavailable", "timeout", "canceled", "unsupported", "corrupt",
}

// Kinds returns every kind, for tables that must be complete.
func Kinds() []Kind {
	kinds := make([]Kind, len(kindNames))
	for i := range kinds {
		kinds[i] = Kind(i)
	}
	return kinds
}

// String returns the stable name of the kind, as it appears in JSON and logs.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "internal"
	}
	return kindNames[k]
}

// ParseKind is the inverse of [Kind.String]; an unknown name is Internal.
func ParseKind(name string) Kind {
	for i, n := range kindNames {
		if n == name {
			return Kind(i)
		}
	}
	return Internal
}

// Error is a classified error with a hint for the person who reads it.
type Error struct {
	Kind    Kind
	Message string // what was attempted and what went wrong
	Hint    string // what to do next; may be empty
	Err     error  // the cause; may be nil
}

// Error returns the message and the cause, without the hint.
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Message
	case e.Message == "":
		return e.Err.Error()
	default:
		return e.Message + ": " + e.Err.Error()
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// WithHint returns a copy of the error that says what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// New makes an error of a kind. As in [fmt.Errorf], %w in the format keeps its operand as the cause.
func New(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	if errors.Unwrap(err) == nil && !strings.Contains(format, "%w") {
		return &Error{Kind: kind, Message: err.Error()}
	}
	return &Error{Kind: kind, Err: err}
}

// KindOf returns the kind of the outermost classified error in the chain; context errors have kinds of their own.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	default:
		return Internal
	}
}

// Is reports whether err is of the kind; it is false for nil.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// HintOf returns the outermost hint in the chain, or the empty string.
func HintOf(err error) string {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
