package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"banger/internal/fault"
)

func TestKindsHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, k := range fault.Kinds() {
		name := k.String()
		if name == "" || seen[name] {
			t.Errorf("kind %d has the name %q, which is empty or taken", k, name)
		}
		seen[name] = true
		if got := fault.ParseKind(name); got != k {
			t.Errorf("ParseKind(%q) = %v, want %v", name, got, k)
		}
	}
	if last := fault.Corrupt; len(fault.Kinds()) != int(last)+1 {
		t.Errorf("there are %d names and %d kinds", len(fault.Kinds()), last+1)
	}
	for _, unknown := range []string{"", "Internal", "no-such-kind"} {
		if got := fault.ParseKind(unknown); got != fault.Internal {
			t.Errorf("ParseKind(%q) = %v, want internal", unknown, got)
		}
	}
	for _, k := range []fault.Kind{-1, 1000} {
		if got := k.String(); got != "internal" {
			t.Errorf("Kind(%d).String() = %q, want internal", k, got)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err   *fault.Error
		text  string
		holds []error
	}{
		"no cause":       {fault.New(fault.Invalid, "bad %q", "x"), `bad "x"`, nil},
		"cause":          {fault.New(fault.Busy, "do: %w", io.EOF), "do: EOF", []error{io.EOF}},
		"cause first":    {fault.New(fault.Busy, "%w", io.EOF), "EOF", []error{io.EOF}},
		"two causes":     {fault.New(fault.Busy, "%w, %w", io.EOF, io.ErrClosedPipe), "EOF, io: read/write on closed pipe", []error{io.EOF, io.ErrClosedPipe}},
		"error, not %w":  {fault.New(fault.Busy, "do: %v", io.EOF), "do: EOF", nil},
		"per cent":       {fault.New(fault.Busy, "100%% full"), "100% full", nil},
		"both":           {&fault.Error{Message: "do", Err: io.EOF}, "do: EOF", []error{io.EOF}},
		"cause, no word": {&fault.Error{Err: io.EOF}, "EOF", []error{io.EOF}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := c.err.Error(); got != c.text {
				t.Errorf("Error() = %q, want %q", got, c.text)
			}
			for _, want := range c.holds {
				if !errors.Is(c.err, want) {
					t.Errorf("the error does not hold %v", want)
				}
			}
			if c.holds == nil && errors.Is(c.err, io.EOF) {
				t.Error("the error holds a cause that was not given with %w")
			}
		})
	}
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	busy := fault.New(fault.Busy, "busy")
	for name, c := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"unclassified":               {io.EOF, fault.Internal},
		"direct":                     {busy, fault.Busy},
		"wrapped":                    {fmt.Errorf("do: %w", busy), fault.Busy},
		"outermost":                  {fault.New(fault.Timeout, "do: %w", busy), fault.Timeout},
		"joined":                     {errors.Join(io.EOF, busy), fault.Busy},
		"first of joined":            {errors.Join(fault.New(fault.Exists, "a"), busy), fault.Exists},
		"cancelled":                  {fmt.Errorf("do: %w", context.Canceled), fault.Canceled},
		"deadline":                   {fmt.Errorf("do: %w", context.DeadlineExceeded), fault.Timeout},
		"classified beats context":   {fault.New(fault.Unavailable, "%w", context.Canceled), fault.Unavailable},
		"a context inside is a word": {errors.Join(busy, context.Canceled), fault.Busy},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fault.KindOf(c.err); got != c.want {
				t.Errorf("KindOf = %v, want %v", got, c.want)
			}
			for _, k := range fault.Kinds() {
				if got := fault.Is(c.err, k); got != (k == c.want) {
					t.Errorf("Is(%v) = %t", k, got)
				}
			}
		})
	}
	if fault.Is(nil, fault.Internal) {
		t.Error("no error is of kind internal")
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	inner := fault.New(fault.Busy, "busy").WithHint("wait %d s", 3)
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"none":         {fault.New(fault.Busy, "busy"), ""},
		"nil":          {nil, ""},
		"unclassified": {io.EOF, ""},
		"direct":       {inner, "wait 3 s"},
		"wrapped":      {fmt.Errorf("do: %w", inner), "wait 3 s"},
		"inner":        {fault.New(fault.Timeout, "do: %w", inner), "wait 3 s"},
		"inner, deep":  {fault.New(fault.Timeout, "a: %w", fmt.Errorf("b: %w", inner)), "wait 3 s"},
		"outermost":    {fault.New(fault.Timeout, "do: %w", inner).WithHint("try again"), "try again"},
		"joined":       {errors.Join(io.EOF, inner), "wait 3 s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fault.HintOf(c.err); got != c.want {
				t.Errorf("HintOf = %q, want %q", got, c.want)
			}
		})
	}
	plain := fault.New(fault.Busy, "busy")
	if hinted := plain.WithHint("x"); plain.Hint != "" || hinted.Error() != "busy" || hinted.Kind != fault.Busy {
		t.Errorf("WithHint changed the original (%+v) or more than the hint (%+v)", plain, hinted)
	}
}
