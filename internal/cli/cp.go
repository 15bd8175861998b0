package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

type copyOptions struct {
	archive bool
	follow  bool
	user    string
}

func newCopy(a *app) *cobra.Command {
	o := &copyOptions{}
	cmd := &cobra.Command{
		Use:   "cp <source> <destination>",
		Short: "Copy files into a VM, out of it, or between VMs",
		Long: `Copy a file or a directory into a running VM, out of it, or from one VM to another. A place in a VM is written vm:path; a
relative path there is relative to the user's home. A dash stands for a tar stream on standard input or output.

As with docker cp, what is copied goes into the destination if that is a directory, and else gets its name; dir/. means what
is in a directory. Modes, times, symbolic and hard links are kept. In a VM, what arrives belongs to root, or to --user; here,
to you. --archive keeps the user and group ids, here only as root.

A VM is not trusted: nothing is written but the destination, and set-user-id bits, devices and pipes do not get here. A file
has its name only when it is whole.`,
		Example: `  banger cp notes.txt devbox:
  banger cp devbox:/var/log/apt ./logs
  banger cp ./site/. devbox:/srv/site
  banger cp devbox:src - | tar -tv`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("%s takes a source and a destination, not %d arguments", cmd.CommandPath(), len(args)).withHint("%s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCopy(cmd.Context(), a, args[0], args[1], o)
		},
		ValidArgsFunction: completer{a}.copyPlaces,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.archive, "archive", "a", false, "keep user and group ids")
	f.BoolVarP(&o.follow, "follow-link", "L", false, "if the source is a symbolic link, copy what it points to")
	f.StringVarP(&o.user, "user", "u", "", "`user` in the VM whose home paths are relative to, and who owns what arrives there")
	return cmd
}

// copyPlaces suggests files, and the names of VMs with the colon that is to follow.
func (c completer) copyPlaces(cmd *cobra.Command, used []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(used) > 1 || strings.ContainsAny(prefix, "/:") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	vms, _ := c.vms(cmd, nil, prefix)
	places := make([]string, 0, len(vms))
	for _, vm := range vms {
		name, _, _ := strings.Cut(vm, "\t") // a description
		places = append(places, name+":")
	}
	return places, cobra.ShellCompDirectiveNoSpace
}

// copyPlace is one end of a copy.
type copyPlace struct {
	vm   string // empty: here
	path string // "-": a tar stream, here only
}

// parsePlace reads an end of a copy. What has a slash before its colon, or a dot at its beginning, is a path here.
func parsePlace(text string) copyPlace {
	vm, path, found := strings.Cut(text, ":")
	if !found || vm == "" || strings.Contains(vm, "/") || strings.HasPrefix(vm, ".") {
		return copyPlace{path: text}
	}
	return copyPlace{vm: vm, path: path}
}

func (p copyPlace) isStream() bool { return p.vm == "" && p.path == "-" }

// name returns how the copy of a place is called: its last element; ".": only what is in it counts.
func (p copyPlace) name() string {
	base := filepath.Base(p.path) // of a path that ends with a slash, what is before that
	if base == ".." || base == "/" || strings.HasSuffix(p.path, "/.") {
		return "."
	}
	return base
}

func runCopy(ctx context.Context, a *app, from, to string, o *copyOptions) error {
	src, dst := parsePlace(from), parsePlace(to)
	switch {
	case src.vm == "" && dst.vm == "":
		return usagef("neither %q nor %q is in a VM", from, to).withHint("write vm:path for one of them")
	case src.vm != "" && src.path == "" || src.vm == "" && src.path == "":
		return usagef("the source %q names no file", from).withHint("banger cp %s:path %s", src.vm, to)
	case dst.vm == "" && dst.path == "":
		return usagef("the destination is empty").withHint("banger cp %s .", from)
	case src.isStream() && isTerminal(a.sys.Stdin):
		return usagef("the tar stream would be read from the terminal").withHint("tar -c FILES | banger cp - %s", to)
	case dst.isStream() && isTerminal(a.sys.Stdout):
		return usagef("the tar stream would be written to the terminal").withHint("banger cp %s - | tar -x", from)
	case src.vm == "" && !src.isStream():
		if _, err := os.Lstat(src.path); err != nil {
			return fault.New(fault.NotFound, "copy: %w", err)
		}
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	c := &copying{app: a, client: client, options: o, display: a.newDisplay()}
	defer c.display.erase()
	err = c.run(ctx, src, dst)
	c.display.erase()
	c.tell()
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	c.summary()
	return nil
}

// source writes the tar stream of what is to be copied.
func (c *copying) source(ctx context.Context, src copyPlace, w io.Writer) error {
	switch {
	case src.isStream():
		_, err := io.Copy(w, c.app.sys.Stdin)
		return err
	case src.vm != "":
		return c.client.GetFiles(ctx, &bangerv1.GetFilesRequest{
			Vm: src.vm, Path: src.path, Name: src.name(), User: c.options.user, Follow: c.options.follow,
		}, w)
	default:
		return c.pack(ctx, src, w)
	}
}

// sink takes the tar stream in.
func (c *copying) sink(ctx context.Context, src, dst copyPlace, r io.Reader) error {
	switch {
	case dst.isStream():
		_, err := io.Copy(c.app.sys.Stdout, r)
		return err
	case dst.vm != "":
		return c.client.PutFiles(ctx, &bangerv1.PutFilesStart{
			Vm: dst.vm, Path: dst.path, Into: src.isStream(), User: c.options.user, ArchiveOwner: c.options.archive,
		}, r)
	default:
		return c.unpack(src, dst, r)
	}
}
