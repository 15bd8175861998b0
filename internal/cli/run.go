package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
)

type runOptions struct {
	spec    specFlags
	source  workspaceFlags
	user    string
	workdir string
	tty     ttyChoice
	remove  bool
	detach  bool
	timings timingsFlag

	noTemplate bool
	tools      []bootstrap // to install in the VM
}

func newRun(a *app) *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [path] [flags] [-- command...]",
		Short: "Create a VM, start it and run a command or a shell in it",
		Long: `Create a VM, start it and run a command in it; without one, what the image runs (its entrypoint and command),
else a login shell. A command that is given runs as it is: the image's entrypoint is left out. User, directory and
environment are the image's unless given.

The command's input and output are this terminal's, and its exit status becomes banger's. When it ends the VM
stays, unless --rm is given.

With a path, the git repository around it goes into /root/NAME of the VM, and the command runs there: the newest commit (the
history with --full) and the tracked files as they are in the working tree. Untracked files stay behind unless
--include-untracked is given, ignored ones always. With --copy the path is any directory, and all of it goes. With --bootstrap, tools
that the repository names (mise, asdf, nix, devbox, devcontainer) are installed meanwhile, if the image has what installs them;
~/.cache/banger/bootstrap.log in the VM tells how that goes.

With -d the command is the VM's main process: it runs from each start of the VM on, its output goes to the console
(banger logs), and its end stops the VM. An image that names no program, or only a shell, starts none: the VM stays up.`,
		Example: `  banger run
  banger run --name devbox --memory 2G -- uname -a
  banger run --rm ./repo -- make test
  echo 'uname -a' | banger run --rm
  banger run --rm --quiet -- tar c /etc > etc.tar
  banger run -d --name web -- python3 -m http.server`,
		Args: pathAndCommand,
		RunE: func(cmd *cobra.Command, args []string) error {
			create, err := o.spec.request(a, cmd)
			if err != nil {
				return err
			}
			var path string
			path, args = splitPath(cmd, args)
			if _, err := os.Stat(path); path != "" && errors.Is(err, fs.ErrNotExist) {
				return usagef("there is no directory %q here", path).withHint("if it is a command: %s -- %s", cmd.CommandPath(), path)
			}
			if create.Workspace, err = o.source.source(cmd, path); err != nil {
				return err
			}
			if o.source.dryRun {
				return runWorkspacePlan(cmd.Context(), a, create.GetWorkspace())
			}
			if o.tools, err = bootstrapOf(a, create.GetWorkspace(), o.source.bootstrap); err != nil {
				return err
			}
			if err := needsNetwork(o.tools, create.GetSpec().GetNet()); err != nil {
				return err
			}
			return runRun(cmd.Context(), a, o, create, args)
		},
	}
	o.spec.register(a, cmd)
	o.source.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.user, "user", "u", "", "`user` of the command: name, uid, name:group or uid:gid")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working `directory` of the command")
	registerTTY(cmd, &o.tty)
	f.BoolVar(&o.remove, "rm", false, "delete the VM when the command has ended, Ctrl-C included")
	f.BoolVarP(&o.detach, "detach", "d", false, "print the VM's name and attach to nothing; the command is its main process")
	f.BoolVar(&o.noTemplate, "no-template", false, "boot, although a template could be restored")
	o.timings.register(cmd)
	return cmd
}

func registerTTY(cmd *cobra.Command, c *ttyChoice) {
	f := cmd.Flags()
	f.BoolVarP(&c.force, "tty", "t", false, "give the command a terminal (default: if input and output are one)")
	f.BoolVarP(&c.never, "no-tty", "T", false, "give the command no terminal")
	f.BoolP("interactive", "i", false, "pass input on (always done, so that -it can be typed)")
}

// pathAndCommand accepts one argument before --, the path, and any after it.
func pathAndCommand(cmd *cobra.Command, args []string) error {
	before := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		before = args[:dash]
	}
	if len(before) < 2 {
		return nil
	}
	return usagef("%s takes one path before --, but got %q as well", cmd.CommandPath(), before[1]).
		withHint("%s %s -- %s, or without the path: %s -- %s", cmd.CommandPath(), before[0], strings.Join(before[1:], " "),
			cmd.CommandPath(), strings.Join(before, " "))
}

// splitPath returns the path and the command.
func splitPath(cmd *cobra.Command, args []string) (path string, command []string) {
	if dash := cmd.ArgsLenAtDash(); dash == 0 || len(args) == 0 {
		return "", args
	}
	return args[0], args[1:]
}

func runRun(ctx context.Context, a *app, o *runOptions, create *bangerv1.CreateRequest, args []string) error {
	create.Start, create.NoTemplate = true, o.noTemplate
	if o.detach {
		switch {
		case o.remove:
			return usagef("-d and --rm exclude each other: nothing would end the VM")
		case len(o.tools) > 0:
			return usagef("--bootstrap and -d exclude each other").withHint("leave -d out and give a command that ends: -- true")
		case create.GetWorkspace() != nil && len(args) > 0:
			return usagef("with -d the command begins before the workspace is there").
				withHint("leave the command out, then: banger exec NAME -- %s", strings.Join(args, " "))
		}
		create.Main = &bangerv1.Process{Args: args, Dir: o.workdir, User: o.user}
		return runCreate(ctx, a, create, &o.timings)
	}
	exec, err := a.execSpec(args, nil, o.user, o.workdir, o.tty)
	if err != nil {
		return err
	}
	d := a.newDisplay()
	defer d.keep()
	defer o.timings.begin(a, d)()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	var vm *bangerv1.VM
	s := &session{
		app:     a,
		display: d,
		start: &bangerv1.AttachStart{
			Target: &bangerv1.AttachStart_Create{Create: create}, Exec: exec, Remove: o.remove,
		},
		onVM: func(up *bangerv1.VM) {
			vm = up
			d.erase()
			d.recordStart(up)
			a.note("%s", summary(up))
			beginBootstrap(ctx, a, client, up, o.tools)
		},
	}
	err = s.run(ctx, client.VMs.Run)
	if vm != nil && !o.remove {
		a.note("VM %s is still running; back to it: banger exec %s; delete it: banger rm --force %s",
			vm.GetName(), vm.GetName(), vm.GetName())
	}
	return err
}

// summary is one line about what a VM is.
func summary(vm *bangerv1.VM) string {
	spec := vm.GetSpec()
	backend := vm.GetBackend()
	if backend == "" {
		backend = spec.GetBackend()
	}
	if acc := vm.GetAccelerator(); acc != "" {
		backend += " (" + acc + ")"
	}
	cpus := "1 vCPU"
	if spec.GetVcpus() != 1 {
		cpus = itoa(spec.GetVcpus()) + " vCPUs"
	}
	return vm.GetName() + ": " + strings.Join([]string{
		spec.GetImage(), cpus, microvm.FormatSize(spec.GetMemory()) + " memory",
		microvm.FormatSize(spec.GetDiskSize()) + " disk", "network " + spec.GetNet(), backend,
	}, ", ")
}
