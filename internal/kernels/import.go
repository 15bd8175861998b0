package kernels

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/fault"
	"banger/internal/progress"
)

// importKey serialises imports, which learn the name of their kernel on the way. No kernel can have it as its name.
const importKey = "import."

// Import makes a kernel from files of the host: packages (.deb, .rpm; several if one kernel is spread over them), a
// directory, a bzImage or a vmlinux. An empty name takes the kernel's release. Importing the same kernel again is no
// error; another one under a name that is taken is fault.Exists.
func (s *Store) Import(ctx context.Context, name string, files []string, sink progress.Sink) (_ Kernel, err error) {
	if len(files) == 0 {
		return Kernel{}, fault.New(fault.Invalid, "no file named to import a kernel from")
	}
	if name != "" {
		if err := validateName(name); err != nil {
			return Kernel{}, err
		}
	}
	for _, file := range files {
		if !filepath.IsAbs(file) {
			return Kernel{}, fault.New(fault.Invalid, "the path %.100q is not absolute", file)
		}
	}
	const stage = "import kernel"
	end := sink.Stage(stage)
	defer func() { end(err) }()
	var published string
	err = s.kernels.Exclusive(ctx, importKey, sink, func(work string) error {
		t, err := newTree(filepath.Join(work, "tree"))
		if err != nil {
			return err
		}
		defer t.root.Close() //nolint:errcheck // a directory
		for _, file := range files {
			sink.Send(progress.Update{Stage: stage, Detail: filepath.Base(file)})
			if err := t.add(ctx, file); err != nil {
				return err
			}
		}
		m := manifest{
			Format: format, Name: name, Files: map[string]string{}, Created: time.Now().UTC().Truncate(time.Second),
			Source: "imported from " + strings.Join(files, ", "), Package: strings.Join(t.names, " "), Version: t.version,
		}
		out := filepath.Join(work, "out")
		if err := os.Mkdir(out, 0o755); err != nil { // nothing secret
			return err
		}
		if err := s.assemble(ctx, t, out, &m, func(detail string) { sink.Send(progress.Update{Stage: stage, Detail: detail}) }); err != nil {
			return err
		}
		published = m.Name
		return s.kernels.Exclusive(ctx, m.Name, sink, func(aside string) error {
			there, err := s.Get(m.Name)
			switch {
			case err == nil && there.Digest == m.Digest:
				return nil
			case err == nil:
				return fault.New(fault.Exists, "there is another kernel named %s", m.Name).
					WithHint("choose another name with --name, or delete that one: banger kernel delete %s", m.Name)
			case !fault.Is(err, fault.NotFound):
				return err
			}
			return publish(out, filepath.Join(s.dir, m.Name), filepath.Join(aside, "old"))
		})
	})
	if err != nil {
		return Kernel{}, fmt.Errorf("import kernel: %w", err)
	}
	return s.Get(published)
}
