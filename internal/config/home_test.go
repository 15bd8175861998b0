package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/fault"
)

// loadText loads a configuration file with this text.
func loadText(t *testing.T, text string) (Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"BANGER_CONFIG": file, "HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1000"}
	return load(func(name string) string { return env[name] }, host{cpus: 4, memory: 8 << 30, uid: 1000, userRuntime: "/run/user", temp: "/tmp"})
}

func TestFileSync(t *testing.T) {
	t.Parallel()
	c, err := loadText(t, `
[[file_sync]]
host = "~/.gitconfig"

[[file_sync]]
host = "/etc/token"
guest = "/root/.config/token"
mode = "0600"

[home]
git_identity = false
`)
	want := []FileSync{{Host: "~/.gitconfig", Guest: ".gitconfig"}, {Host: "/etc/token", Guest: ".config/token", Mode: 0o600}}
	if err != nil || !slices.Equal(c.Home.Files.Value, want) || c.Home.GitIdentity.Value {
		t.Errorf("got %+v, %v", c.Home, err)
	}
	if c, err := loadText(t, ""); err != nil || len(c.Home.Files.Value) != 0 || !c.Home.GitIdentity.Value {
		t.Errorf("without a word: %+v, %v", c.Home, err)
	}
}

func TestFileSyncRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"no host":            "[[file_sync]]\nguest = \"~/x\"",
		"relative host":      "[[file_sync]]\nhost = \"x\"",
		"no guest for it":    "[[file_sync]]\nhost = \"/etc/hosts\"",
		"out of the home":    "[[file_sync]]\nhost = \"~/x\"\nguest = \"/etc/x\"",
		"climbing out":       "[[file_sync]]\nhost = \"~/x\"\nguest = \"/root/../etc/x\"",
		"the home itself":    "[[file_sync]]\nhost = \"~/x\"\nguest = \"/root/\"",
		"a zero byte":        "[[file_sync]]\nhost = \"~/x\"\nguest = \"~/\\u0000\"",
		"mode with set-uid":  "[[file_sync]]\nhost = \"~/x\"\nmode = \"4755\"",
		"mode as a number":   "[[file_sync]]\nhost = \"~/x\"\nmode = 600",
		"unknown key":        "[[file_sync]]\nhost = \"~/x\"\nowner = \"me\"",
		"twice":              "[[file_sync]]\nhost = \"~/x\"\n[[file_sync]]\nhost = \"~/y\"\nguest = \"~/x\"",
		"a table":            "[file_sync]\nhost = \"~/x\"",
		"identity as a word": "[home]\ngit_identity = \"no\"",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := loadText(t, text)
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "config.toml:") {
				t.Errorf("error %v", err)
			}
		})
	}
}
