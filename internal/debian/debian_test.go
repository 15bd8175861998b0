package debian

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/progress"
)

const deb822 = `Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
`

func TestHostSources(t *testing.T) {
	t.Parallel()
	base := func(host string) string { return "deb http://" + host + "/debian bookworm main\n" }
	tests := []struct {
		name, list, sources string
		want                []string
	}{
		{"deb822", "", deb822, []string{
			"http://mirror.example/debian bookworm", "http://mirror.example/debian bookworm-updates",
			"http://mirror.example/debian-security/ bookworm-security",
		}},
		{
			"one line", "# deb http://c.example/debian bookworm main\n" + base("m.example") + base("m.example") +
				"deb-src http://m.example/debian bookworm main\ndeb\t[arch=amd64 signed-by=/k/debian-archive-x.gpg] https://s.example/debian-security bookworm-security main contrib # x\n", "",
			[]string{"http://m.example/debian bookworm", "https://s.example/debian-security bookworm-security"},
		},
		{
			"third parties", base("m.example") +
				"deb [signed-by=/etc/apt/keyrings/docker.gpg] https://d.example/linux/debian bookworm main\n" +
				"deb https://p.example/php bookworm main\ndeb http://x.example/debian bookworm-backports main\ndeb http://x.example/debian bookworm stable\n", "",
			[]string{"http://m.example/debian bookworm"},
		},
		{"credentials stay out", "deb http://me:secret@m.example/debian bookworm main\n", "", nil},
		{"media", "deb cdrom:[Debian 12]/ bookworm main\ndeb file:/srv/debian bookworm main\n", "", nil},
		{"another release", "deb http://m.example/debian trixie main\ndeb http://m.example/debian-security bookworm-security main\n", "", nil},
		{"damaged", "deb [signed-by=x http://m.example/debian bookworm main\ndeb http://%zz/debian bookworm main\ndeb\ndeb x\n", ": x\n  y\nTypes deb\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := &Archive{etc: t.TempDir()}
			err := writeFiles(a.etc, map[string]string{
				"sources.list": tt.list, "sources.list.d/x.sources": tt.sources, "sources.list.d/x.save": base("old.example"),
			})
			if err != nil {
				t.Fatal(err)
			}
			found, err := a.hostSources("bookworm")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range found {
				got = append(got, s.uri+" "+s.suite)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSourcesPinTheKeyring(t *testing.T) {
	t.Parallel()
	a := &Archive{etc: t.TempDir(), keyring: filepath.Join(t.TempDir(), "keys.gpg")}
	if err := writeFiles(a.etc, map[string]string{"sources.list.d/x.sources": deb822}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Sources(t.Context(), "bookworm", t.TempDir()); !fault.Is(err, fault.Unsupported) {
		t.Errorf("without keys: got %v", err)
	}
	if err := os.WriteFile(a.keyring, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := a.Sources(t.Context(), "bookworm", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text, "\n"); n != 3 || strings.Count(text, "deb [signed-by="+a.keyring+"] http") != 3 {
		t.Errorf("got\n%s", text)
	}
}

func FuzzSources(f *testing.F) {
	f.Add(deb822)
	f.Add("deb [a=b] http://m.example/debian bookworm main\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range usable(append(parseOneLine(text), parseDeb822(text)...), "bookworm") {
			if strings.ContainsAny(s.uri, " \t\n[]") || !strings.HasPrefix(s.suite, "bookworm") {
				t.Errorf("unsafe source %+v", s)
			}
		}
	})
}

func TestFilterAcquire(t *testing.T) {
	t.Parallel()
	const dump = `Acquire::http::Proxy "http://proxy.example:3128/";
Acquire::https::Verify-Peer "false";
Acquire::AllowInsecureRepositories "1";
Acquire::Check-Valid-Until "false";
Acquire::Retries "5";
APT::Update::Post-Invoke:: "rm -rf /";
`
	want := "Acquire::http::Proxy \"http://proxy.example:3128/\";\nAcquire::Retries \"5\";\n"
	if got := filterAcquire(dump); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestParsePackage(t *testing.T) {
	t.Parallel()
	pkg := parsePackage(paragraphs("Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1+2)\nVersion: 6.1-2\nDepends: a (= 1), b | c,\n d\nDescription: x\n y\n")[0])
	if pkg.Source != "linux-signed-amd64" || pkg.Version != "6.1-2" || fmt.Sprint(pkg.Depends) != "[a (= 1) b | c d]" {
		t.Errorf("got %+v", pkg)
	}
}

func TestWatcher(t *testing.T) {
	t.Parallel()
	var got []string
	w := &watcher{stage: "s", sink: func(u progress.Update) {
		got = append(got, fmt.Sprintf("%s %d/%d", u.Detail, u.Current, u.Total))
	}}
	log := "I: running apt-get update...\nGet:1 x\nI: downloading packages with apt...\n0 upgraded, 2 newly installed, 0 to remove\n" +
		"I: installing essential packages...\nUnpacking libc6:amd64 (2.36) ...\nSetting up libc6:amd64 (2.36) ...\r\nI: something new...\nSetting up dash (1) ...\n" +
		"E: dpkg failed\n" + strings.Repeat("x", 5000) + "\nI: main() received signal\n"
	for _, c := range []byte(log) { // in the smallest pieces
		_, _ = w.Write([]byte{c})
	}
	want := []string{
		"read package index 0/0", "download packages 0/0", "install essential packages 0/2", "unpack libc6:amd64 0/2",
		"set up libc6:amd64 1/2", "install essential packages 1/2", "set up dash 2/2", "install essential packages 2/2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if w.reason() != "E: dpkg failed" || w.full {
		t.Errorf("reason %q, full %v", w.reason(), w.full)
	}
	_, _ = w.Write([]byte("dpkg: error: No space left on device\n"))
	if !w.full {
		t.Error("a full disk was not noticed")
	}
}

func TestHasSubIDs(t *testing.T) {
	t.Parallel()
	const table = "root:100000:65536\nann:165536:65536\n1002:231072:65536\n"
	for _, tt := range []struct {
		name, uid string
		want      bool
	}{{"ann", "1001", true}, {"bob", "1002", true}, {"eve", "1003", false}, {"an", "100", false}} {
		if got := hasSubIDs(table, tt.name, tt.uid); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}

func TestEndOrphans(t *testing.T) {
	t.Parallel()
	arg := aptoptArg(Paths{Work: t.TempDir()})
	start := func(arg string) *hostexec.Process {
		p, err := hostexec.Start(hostexec.Cmd{Path: "sh", Args: []string{"-c", "while :; do sleep 60; done", "x", arg}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Kill(); <-p.Done() })
		return p
	}
	orphan, other := start(arg), start(arg+"1")
	endOrphans("/proc", arg)
	select {
	case <-orphan.Done():
	case <-time.After(5 * time.Second):
		t.Error("the orphan lives")
	}
	select {
	case <-other.Done():
		t.Error("another process was killed")
	case <-time.After(20 * time.Millisecond):
	}
}

func TestBootstrapArgsAreChecked(t *testing.T) {
	t.Parallel()
	args := bootstrapArgs(Recipe{Suite: "bookworm", Variant: "minbase", Packages: []string{"a", "b"}, Exclude: []string{"/usr/share/doc/*"}, Finish: "true"}, "amd64", Paths{Work: "/x"})
	line := strings.Join(args, " ")
	for _, bad := range []string{"unauthenticated", "trusted=yes", "insecure", "no-check"} {
		if strings.Contains(strings.ToLower(line), bad) {
			t.Errorf("signatures would not be checked: %s", line)
		}
	}
	if !strings.Contains(line, "--include=a,b") || !strings.HasSuffix(line, " bookworm - -") {
		t.Errorf("arguments %q", args)
	}
}
