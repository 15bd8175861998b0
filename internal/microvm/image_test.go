package microvm_test

import (
	"slices"
	"testing"

	"banger/internal/microvm"
)

func TestImageProgram(t *testing.T) {
	t.Parallel()
	words := func(w ...string) []string { return w }
	for _, tt := range []struct {
		name            string
		entrypoint, cmd []string
		program         []string
		service         []string
	}{
		{"neither", nil, nil, nil, nil},
		{"entrypoint and command", words("/entry.sh"), words("nginx", "-g"), words("/entry.sh", "nginx", "-g"), words("/entry.sh", "nginx", "-g")},
		{"command only", nil, words("node", "server.js"), words("node", "server.js"), words("node", "server.js")},
		{"a shell", nil, words("/bin/bash"), words("/bin/bash"), nil},
		{"a shell with work", nil, words("sh", "-c", "serve"), words("sh", "-c", "serve"), words("sh", "-c", "serve")},
		{"an init", nil, words("/sbin/init"), nil, nil},
		{"systemd", words("/lib/systemd/systemd"), nil, nil, nil},
		{"an init with arguments", words("/sbin/init"), words("--x"), words("/sbin/init", "--x"), words("/sbin/init", "--x")},
	} {
		c := microvm.ImageConfig{Entrypoint: tt.entrypoint, Cmd: tt.cmd}
		if got := c.Program(); !slices.Equal(got, tt.program) {
			t.Errorf("%s: program %q", tt.name, got)
		}
		if got := c.Service(); !slices.Equal(got, tt.service) {
			t.Errorf("%s: service %q", tt.name, got)
		}
	}
}
