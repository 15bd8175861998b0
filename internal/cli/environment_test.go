package cli

import (
	"strings"
	"testing"

	bangerv1 "banger/internal/gen/banger/v1"
)

// A bad variable is a wrong command line, and told before the daemon is asked for anything.
func TestBadVariable(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs(), long: func(verb, vm string, _ func(*bangerv1.Event) error) error {
		t.Errorf("the daemon was asked to %s %s", verb, vm)
		return nil
	}})
	for name, env := range map[string]string{
		"no name": "=x", "space": "A B=x", "line break": "A\nB=x", "zero": "A=x\x00", "no text": "A=\xff", "too long": "A=" + strings.Repeat("x", 1<<17),
	} {
		for _, command := range [][]string{
			{"run", "--env", env, "--", "true"}, {"run", "-d", "-e", env}, {"vm", "create", "--env", env}, {"exec", "-e", env, "alpha", "--", "true"},
		} {
			if r := b.run(command...); r.status != exitUsage || !strings.Contains(r.stderr, "env") || strings.ContainsRune(r.stderr, 0) {
				t.Errorf("%s: banger %s: exit status %d, %q", name, command[0], r.status, r.stderr)
			}
		}
	}
}
