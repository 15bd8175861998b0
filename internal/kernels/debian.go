package kernels

import (
	"context"
	"path/filepath"
	"regexp"

	"banger/internal/debian"
	"banger/internal/fault"
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
	return Fetched{Source: pkg.Source, Package: pkg.Name, Version: pkg.Version}, nil
}
