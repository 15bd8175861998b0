package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/progress"
)

// Packages is a fresh, private view of the packages of one suite. It shares nothing with the host's apt and lives in one
// directory; remove that to be rid of it.
type Packages struct {
	dir  string
	env  []string
	get  string // apt-get
	look string // apt-cache
}

// Package is a package as the archive's signed index describes it.
type Package struct {
	Name    string
	Version string
	Source  string   // name of the source package
	Depends []string // alternatives and versions as written: "libc6 (>= 2.36) | libc6-udeb"
}

// Packages downloads the indexes of a suite into the empty directory dir (about 60 MB, removed with it).
func (a *Archive) Packages(ctx context.Context, suite, dir string, sink progress.Sink) (_ *Packages, err error) {
	const stage = "read Debian package index"
	defer func(end func(error)) { end(err) }(sink.Stage(stage))
	get, err := hostexec.Look("apt-get", "apt")
	if err != nil {
		return nil, err
	}
	look, err := hostexec.Look("apt-cache", "apt")
	if err != nil {
		return nil, err
	}
	arch, err := architecture()
	if err != nil {
		return nil, err
	}
	acquire, err := acquireOptions(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sources, err := a.Sources(ctx, suite, dir)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(dir, "\"\n") {
		return nil, fault.New(fault.Invalid, "bad directory name %q", dir)
	}
	err = writeFiles(dir, map[string]string{
		"apt.conf": aptConf(dir, arch) + acquire, "status": "", "etc/sources.list": sources, "etc/preferences": "",
		"etc/apt.conf.d/.keep": "", "etc/preferences.d/.keep": "", "state/lists/partial/.keep": "",
		"cache/archives/partial/.keep": "", "log/.keep": "",
	})
	if err != nil {
		return nil, fmt.Errorf("set up apt: %w", err)
	}
	// APT_CONFIG is read first and points away from the host's configuration.
	p := &Packages{dir: dir, get: get, look: look, env: append(environ(dir), "APT_CONFIG="+filepath.Join(dir, "apt.conf"))}
	if err := p.run(ctx, get, "update"); err != nil {
		return nil, fault.New(fault.Unavailable, "read the package index of %s: %w", suite, err).
			WithHint("check the network, and the proxy settings of apt")
	}
	return p, nil
}

func aptConf(dir, arch string) string {
	return fmt.Sprintf(`Dir %[1]q;
Dir::State "state";
Dir::State::status "%[2]s/status";
Dir::Cache "cache";
Dir::Etc "etc";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::Log "log";
APT::Architecture %[3]q;
APT::Architectures { %[3]q; };
APT::Sandbox::User "root"; // the directory is not the sandbox user's, and an ordinary user has none
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
`, dir, dir, arch)
}

func (p *Packages) run(ctx context.Context, program string, args ...string) error {
	return hostexec.Run(ctx, hostexec.Cmd{Path: program, Args: append([]string{"-q"}, args...), Env: p.env, Dir: p.dir})
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// Show returns what the index says about the newest version of a package.
func (p *Packages) Show(ctx context.Context, name string) (Package, error) {
	if !packageName.MatchString(name) {
		return Package{}, fault.New(fault.Invalid, "bad package name %q", name)
	}
	out, err := hostexec.Output(ctx, hostexec.Cmd{
		Path: p.look, Args: []string{"show", "--no-all-versions", name}, Env: p.env, Dir: p.dir,
	})
	found := paragraphs(string(out))
	switch {
	case err != nil && hostexec.ExitCode(err) < 0:
		return Package{}, err
	case err != nil || len(found) == 0:
		return Package{}, fault.New(fault.NotFound, "no package %s in the Debian archive", name)
	}
	return parsePackage(found[0]), nil
}

func parsePackage(fields map[string]string) Package {
	pkg := Package{Name: fields["package"], Version: fields["version"], Source: fields["package"]}
	if source, _, _ := strings.Cut(fields["source"], " "); source != "" {
		pkg.Source = source
	}
	for dep := range strings.SplitSeq(fields["depends"], ",") {
		if dep = strings.TrimSpace(dep); dep != "" {
			pkg.Depends = append(pkg.Depends, dep)
		}
	}
	return pkg
}

// Unpack downloads a package, which apt checks against the signed index, and unpacks its files into the directory into.
func (p *Packages) Unpack(ctx context.Context, pkg Package, into string, sink progress.Sink) (err error) {
	defer func(end func(error)) { end(err) }(sink.Stage("download " + pkg.Name))
	if !packageName.MatchString(pkg.Name) {
		return fault.New(fault.Invalid, "bad package name %q", pkg.Name)
	}
	deb, err := hostexec.Look("dpkg-deb", "dpkg")
	if err != nil {
		return err
	}
	if err := p.run(ctx, p.get, "download", pkg.Name+"="+pkg.Version); err != nil {
		return fault.New(fault.Unavailable, "download package %s: %w", pkg.Name, err).WithHint("check the network and try again")
	}
	files, err := filepath.Glob(filepath.Join(p.dir, pkg.Name+"_*.deb"))
	if err != nil || len(files) != 1 {
		return errors.Join(fmt.Errorf("download package %s: %d files came", pkg.Name, len(files)), err)
	}
	sink.Send(progress.Update{Stage: "download " + pkg.Name, Detail: "unpack"})
	if err := os.MkdirAll(into, 0o755); err != nil { // nothing secret
		return err
	}
	// Not as root's package manager would: no scripts run. Ownership is the caller's business.
	if err := hostexec.Run(ctx, hostexec.Cmd{Path: deb, Args: []string{"--extract", files[0], into}, Env: p.env}); err != nil {
		return fmt.Errorf("unpack package %s: %w", pkg.Name, err)
	}
	return os.Remove(files[0])
}
