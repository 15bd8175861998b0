// Package debian gets things from the Debian archive: single packages by apt, whole root filesystems by mmdebstrap.
// Signatures are always checked, against the keyring of the package debian-archive-keyring.
//
// It owns how these programs are called, isolated from the host's own apt state, as root and as an ordinary user. It doesn't
// own what is fetched or where that is kept. It holds no locks and no state between calls; every call works in a directory
// that the caller gives it alone.
package debian

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"banger/internal/fault"
	"banger/internal/hostexec"
)

// keyringName is the file of the archive's keys, on hosts and in images alike.
const keyringName = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Archive is the Debian archive as this host reaches it.
type Archive struct {
	etc     string // the host's apt configuration
	keyring string
}

// New returns the archive.
func New() *Archive { return &Archive{etc: "/etc/apt", keyring: keyringName} }

// architecture returns Debian's name of the host's architecture.
func architecture() (string, error) {
	switch runtime.GOARCH {
	case "amd64", "arm64":
		return runtime.GOARCH, nil
	default:
		return "", fault.New(fault.Unsupported, "no Debian packages for %s", runtime.GOARCH)
	}
}

func (a *Archive) checkKeyring() error {
	if _, err := os.Stat(a.keyring); err != nil {
		return fault.New(fault.Unsupported, "the keys of the Debian archive are not installed: %w", err).
			WithHint("install them: sudo apt-get install --no-install-recommends debian-archive-keyring")
	}
	return nil
}

// Sources returns the lines of a sources.list for a suite ("bookworm"): what the host itself uses, if it uses that suite,
// else what mmdebstrap takes by default. work is an empty directory.
func (a *Archive) Sources(ctx context.Context, suite, work string) (string, error) {
	if err := a.checkKeyring(); err != nil {
		return "", err
	}
	hosts, err := a.hostSources(suite)
	if err != nil {
		return "", err
	}
	if len(hosts) == 0 {
		if hosts, err = a.defaultSources(ctx, suite, work); err != nil {
			return "", err
		}
	}
	var b strings.Builder
	for _, s := range hosts {
		fmt.Fprintf(&b, "deb [signed-by=%s] %s %s %s\n", a.keyring, s.uri, s.suite, strings.Join(s.components, " "))
	}
	return b.String(), nil
}

// hostSources reads the host's sources. A file that can't be read or understood is as good as none: it is apt's business
// to complain, and there is a default.
func (a *Archive) hostSources(suite string) ([]source, error) {
	files, err := filepath.Glob(filepath.Join(a.etc, "sources.list.d", "*"))
	if err != nil {
		return nil, err
	}
	var all []source
	for _, file := range append([]string{filepath.Join(a.etc, "sources.list")}, files...) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		switch filepath.Ext(file) {
		case ".list":
			all = append(all, parseOneLine(string(text))...)
		case ".sources":
			all = append(all, parseDeb822(string(text))...)
		}
	}
	return usable(all, suite), nil
}

// defaultSources asks mmdebstrap for its choice: it writes the sources into the new root before anything else, and is
// then stopped by a hook. Nothing is downloaded.
func (a *Archive) defaultSources(ctx context.Context, suite, work string) ([]source, error) {
	bootstrap, err := hostexec.Look("mmdebstrap", "mmdebstrap")
	if err != nil {
		return nil, err
	}
	out := filepath.Join(work, "default.list")
	// No package is installed, so the mode matters little; but as root mmdebstrap warns of the one that users need.
	mode := "chrootless"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	hook := `cat "$1"/etc/apt/sources.list >` + quote(out) + ` && exit 1`
	err = hostexec.Run(ctx, hostexec.Cmd{
		Path: bootstrap,
		Args: []string{"--mode=" + mode, "--format=null", "--variant=custom", "--setup-hook=" + hook, suite, "-"},
		Env:  environ(work),
	})
	text, rerr := os.ReadFile(out)
	if rerr != nil {
		return nil, fmt.Errorf("ask mmdebstrap for its default mirror: %w", err)
	}
	_ = os.Remove(out)
	found := usable(parseOneLine(string(text)), suite)
	if len(found) == 0 {
		return nil, fault.New(fault.Unsupported, "mmdebstrap knows no mirror for %s", suite)
	}
	return found, nil
}

// quote makes one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// environ is the environment of the programs: the caller's, for proxies and the like, but with messages in English, no
// questions, and temporary files where the caller wants them.
func environ(tmp string) []string {
	set := map[string]string{
		"LC_ALL": "C.UTF-8", "LANGUAGE": "", "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": tmp, "APT_CONFIG": "",
		"PATH": os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin",
	}
	var env []string
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); set[name] == "" && name != "APT_CONFIG" && name != "LANGUAGE" {
			env = append(env, kv)
		}
	}
	for name, value := range set {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// acquireOptions returns the host's settings of how to reach servers (proxies, timeouts), as lines of an apt.conf. Settings
// that would loosen the checking of signatures are not among them.
func acquireOptions(ctx context.Context) (string, error) {
	config, err := hostexec.Look("apt-config", "apt")
	if err != nil {
		return "", err
	}
	dump, err := hostexec.Output(ctx, hostexec.Cmd{Path: config, Args: []string{"dump", "--no-empty"}})
	if err != nil {
		return "", fmt.Errorf("read the host's apt configuration: %w", err)
	}
	return filterAcquire(string(dump)), nil
}

func filterAcquire(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		for _, prefix := range []string{
			"Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6",
		} {
			if strings.HasPrefix(line, prefix) && !strings.Contains(line, "::Verify-") {
				b.WriteString(line)
				break
			}
		}
	}
	return b.String()
}

func writeFiles(dir string, files map[string]string) error {
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), fs.FileMode(0o755)); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil { // nothing secret
			return err
		}
	}
	return nil
}
