package kernels

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"banger/internal/debian"
	"banger/internal/fault"
	"banger/internal/hostexec"
	"banger/internal/progress"
)

// debianSource gets kernels from the Debian archive.
type debianSource struct{}

// "linux-image-6.1.0-18-cloud-amd64 (= 6.1.76-1)" in the dependencies of linux-image-cloud-amd64.
var kernelDependency = regexp.MustCompile(`^(linux-image-[0-9][a-z0-9.+-]*)( |$)`)

func (debianSource) Fetch(ctx context.Context, suite, metapackage, work, root string, sink progress.Sink) (Fetched, error) {
	none := Fetched{}
	packages, err := debian.New().Packages(ctx, suite, filepath.Join(work, "apt"), sink)
	if err != nil {
		return none, err
	}
	meta, err := packages.Show(ctx, metapackage)
	if err != nil {
		return none, err
	}
	name := ""
	for _, dep := range meta.Depends {
		if m := kernelDependency.FindStringSubmatch(dep); m != nil {
			name = m[1]
		}
	}
	if name == "" {
		return none, fault.New(fault.Corrupt, "package %s depends on no kernel", metapackage)
	}
	pkg, err := packages.Show(ctx, name)
	if err != nil {
		return none, err
	}
	if err := packages.Unpack(ctx, pkg, root, sink); err != nil {
		return none, err
	}
	if err := depmod(ctx, packages, work, root, sink); err != nil {
		return none, err
	}
	return Fetched{Source: pkg.Source, Package: pkg.Name, Version: pkg.Version}, nil
}

// depmod makes the indexes of the modules, which packages leave to their installation. Minimal hosts have no depmod: then
// Debian's is fetched too and run where it lies; all that it needs besides its own library is on every Debian system.
func depmod(ctx context.Context, packages *debian.Packages, work, root string, sink progress.Sink) error {
	releases, err := filepath.Glob(filepath.Join(root, "lib", "modules", "*"))
	if err != nil || len(releases) != 1 {
		return fault.New(fault.Corrupt, "the kernel package holds modules of %d kernels", len(releases))
	}
	cmd := hostexec.Cmd{Args: []string{"-b", root, filepath.Base(releases[0])}}
	if cmd.Path, err = hostexec.Look("depmod", "kmod"); err != nil {
		tools := filepath.Join(work, "kmod")
		for _, name := range []string{"kmod", "libkmod2"} {
			pkg, err := packages.Show(ctx, name)
			if err == nil {
				err = packages.Unpack(ctx, pkg, tools, sink)
			}
			if err != nil {
				return err
			}
		}
		// kmod does what its name says.
		cmd.Path = filepath.Join(tools, "depmod")
		if err := os.Symlink("bin/kmod", cmd.Path); err != nil {
			return err
		}
		libs, err := filepath.Glob(filepath.Join(tools, "usr", "lib", "*-linux-gnu*"))
		if err != nil || len(libs) != 1 {
			return fault.New(fault.Corrupt, "package libkmod2 holds no library")
		}
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+libs[0])
	}
	if err := hostexec.Run(ctx, cmd); err != nil {
		return fmt.Errorf("index modules: %w", err)
	}
	return nil
}
