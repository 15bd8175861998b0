package microvm_test

import (
	"fmt"
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/microvm"
)

func TestValidateEnv(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		key, value string
		ok         bool
	}{
		"plain":        {"HTTP_PROXY", "http://x:1", true},
		"empty value":  {"A", "", true},
		"odd value":    {"A", "a=b c\n", true},
		"dots":         {"spring.profile", "x", true},
		"no name":      {"", "x", false},
		"equals":       {"A=B", "x", false},
		"space":        {"A B", "x", false},
		"line break":   {"A\nB", "x", false},
		"zero in name": {"A\x00", "x", false},
		"not text":     {"A\xff", "x", false},
		"long name":    {strings.Repeat("N", 2000), "x", false},
		"no text":      {"A", "x\xff", false},
		"zero":         {"A", "x\x00y", false},
		"just fits":    {"A", strings.Repeat("x", 128<<10-3), true},
		"too long":     {"A", strings.Repeat("x", 128<<10-2), false},
	} {
		if err := microvm.ValidateEnv(map[string]string{c.key: c.value}); (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: ValidateEnv = %v, want ok = %t", name, err, c.ok)
		}
		if strings.Contains(c.key, "=") {
			continue // as a word it is another variable
		}
		if err := microvm.ValidateEnvWords([]string{c.key + "=" + c.value}); (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: ValidateEnvWords = %v, want ok = %t", name, err, c.ok)
		}
	}
	if err := microvm.ValidateEnvWords([]string{"NOTHING"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a word without = is %v", err)
	}
	many, words := map[string]string{}, []string(nil)
	for i := range 9 {
		name, value := fmt.Sprintf("A%d", i), strings.Repeat("x", 64<<10)
		many[name], words = value, append(words, name+"="+value)
	}
	if err := microvm.ValidateEnv(many); !fault.Is(err, fault.Invalid) {
		t.Errorf("a huge environment is %v", err)
	}
	if err := microvm.ValidateEnvWords(words); !fault.Is(err, fault.Invalid) {
		t.Errorf("a huge environment of words is %v", err)
	}
	s := validSpec()
	s.Env = map[string]string{"A=B": "x"}
	if err := s.Validate(); !fault.Is(err, fault.Invalid) {
		t.Errorf("a spec with a bad variable is %v", err)
	}
}
