package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBootstraps(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		files map[string]string
		want  []string // file: commands
	}{
		"none":         {map[string]string{"Makefile": ""}, nil},
		"mise":         {map[string]string{"mise.toml": "", ".mise.toml": "", ".tool-versions": ""}, []string{"mise.toml: mise trust -y, mise install -y"}},
		"asdf and nix": {map[string]string{".tool-versions": "", "shell.nix": ""}, []string{".tool-versions: asdf install", "shell.nix: nix-shell --run true"}},
		"devcontainer": {
			map[string]string{".devcontainer/devcontainer.json": `{
				// a comment
				"image": "x", "postCreateCommand": {"b": ["echo", "it's"], "a": "make deps"}, "onCreateCommand": "first", /* and a comma */
			}`},
			[]string{".devcontainer/devcontainer.json: first, make deps, 'echo' 'it'\\''s'"},
		},
		"no commands": {map[string]string{".devcontainer.json": `{"image": "x", "postCreateCommand": null}`}, nil},
		"a directory": {map[string]string{"mise.toml/x": ""}, nil},
	} {
		dir := t.TempDir()
		for _, d := range []string{".git", "sub"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for file, text := range test.files {
			path := filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found, err := bootstraps(filepath.Join(dir, "sub"), false)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range found {
			got = append(got, b.file+": "+strings.Join(b.command, ", "))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
		if plain, err := bootstraps(filepath.Join(dir, "sub"), true); err != nil || len(plain) > 0 {
			t.Errorf("%s: of a plain directory %v, %v", name, plain, err)
		}
	}
}

func TestBadDevcontainers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "{", `{"postCreateCommand": 5}`, `{"postCreateCommand": {"a": {"b": "c"}}}`, "[]"} {
		if c, err := devcontainerCommands([]byte(text)); err == nil {
			t.Errorf("%q: %q", text, c)
		}
	}
}

func FuzzDevcontainer(f *testing.F) {
	f.Add([]byte(`{"postCreateCommand": ["a", "b"], } // x`))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = devcontainerCommands(text) })
}

// TestBootstrapScript has a shell run it: it returns at once, and the log tells of each command.
func TestBootstrapScript(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	script := bootstrapScript([]bootstrap{
		{"a", "sh", []string{"echo it\\'s; sleep 0.3; exit 3"}}, {"b's", "no-such-program", []string{"no-such-program 'x y'"}},
	})
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
	cmd.Env = append(os.Environ(), "HOME="+home)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%s, %v", out, err)
	}
	want := "== a: echo it\\'s; sleep 0.3; exit 3\nit's\n== status 3\n== b's: no-such-program 'x y'\n== skipped: this image has no no-such-program\n== all done\n"
	var text []byte
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text, _ = os.ReadFile(filepath.Join(home, bootstrapLog))
		if strings.HasSuffix(string(text), "done\n") {
			break
		}
	}
	if string(text) != want {
		t.Errorf("the log is %q, want %q", text, want)
	}
}
