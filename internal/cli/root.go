package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const rootHelp = `banger gives you a fresh Linux virtual machine in one command. It needs no root.

  banger run                        a shell in a new VM
  banger run --rm -- uname -a       one command in a VM that is deleted afterwards

What next:
  banger ps                         the VMs that there are
  banger exec NAME -- CMD           run a command in one of them
  banger doctor                     what this machine can do, and what it lacks

A VM is named by its name, its id, or the beginning of its id. A command's exit status is that of
the command in the VM; banger's own failures are 125, and 2 means that the command line is wrong.`

const vmHelp = `A VM is a machine of its own: its own kernel, its own disks, its own network. It lasts until it is deleted.

The common command is run, which creates a VM, starts it and attaches you to it:

  banger vm run

What next: exec runs more commands in the VM, stop ends it and keeps its disks, start boots it again,
delete removes every trace of it.`

const workspaceHelp = `A workspace is a repository of the host's that was put into a VM. Git is the way back: what has changed there comes as a patch,
as a branch, or merged into the host's files.

  banger vm workspace prepare devbox .
  banger vm workspace diff devbox

What next: export makes a patch or a branch of it, apply merges it.`

const imageHelp = `An image is the file system that a VM starts with. Images of the catalogue are built, those of registries are fetched,
on first use; archives are imported.

  banger image list

What next: banger run --image NAME makes a VM from one.`

const kernelHelp = `A kernel is what a VM boots. Kernels are fetched on first use.

  banger kernel list

What next: banger run --kernel NAME boots one.`

const daemonHelp = `The daemon does banger's work. It starts by itself with the first command that needs it; when it ends, VMs go
on running, and the next daemon takes them over.

  banger daemon status

What next: banger daemon logs says what it did.`

// newRoot builds the tree of commands. Everyday commands are there twice: at the root and under their noun.
func newRoot(a *app) *cobra.Command {
	root := newGroup("banger", "A fresh Linux virtual machine in one command", rootHelp,
		"  banger run\n  banger run --rm -- uname -a\n  banger ps")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true, GroupID: "rest"}) // --help is enough
	// A group can be run, to tell of unknown commands, but that is no usage of it.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if not .HasSubCommands}}", 1))
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().BoolVar(&a.quiet, "quiet", false, "no progress and no notes")
	root.PersistentFlags().BoolVar(&a.noColor, "no-color", false, "no colours")

	root.AddGroup(&cobra.Group{ID: "daily", Title: "Everyday commands:"}, &cobra.Group{ID: "nouns", Title: "All commands, by what they are about:"},
		&cobra.Group{ID: "rest", Title: "The rest:"})
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("daily", newRun(a), newList(a, "ps"), newExec(a), newSSH(a), newCopy(a), newStart(a), newStop(a), newDelete(a, "rm"), newLogs(a), newFork(a))

	vm := newGroup("vm", "Virtual machines", vmHelp, "  banger vm run --name devbox\n  banger vm list\n  banger vm exec devbox -- uname -a")
	vm.AddCommand(newRun(a), newCreate(a), newStart(a), newStop(a), newRestart(a), newKill(a), newPause(a), newResume(a),
		newDelete(a, "delete"), newPrune(a), newList(a, "list"), newWait(a), newHealth(a), newSet(a),
		newShow(a), newStats(a), newTop(a), newPorts(a), newExec(a), newSSH(a), newCopy(a), newPortForward(a), newLogs(a), newConsole(a))
	workspace := newGroup("workspace", "What goes between a repository and a VM", workspaceHelp, "  banger vm workspace diff devbox\n  banger vm workspace apply devbox")
	workspace.AddCommand(newWorkspacePrepare(a), newWorkspaceDiff(a), newWorkspaceExport(a), newWorkspaceApply(a))
	vm.AddCommand(workspace, newFork(a), newSnapshot(a))
	image := newGroup("image", "Images", imageHelp, "  banger image list\n  banger image pull alpine:3.20\n  docker save app:dev | banger image import -")
	image.AddCommand(newImageList(a), newImageShow(a), newImagePull(a), newImageImport(a), newImageRegister(a), newImageDelete(a), newImagePrune(a),
		newImagePromote(a), newImageExport(a), newImagePush(a))
	kernel := newGroup("kernel", "Kernels", kernelHelp, "  banger kernel list\n  banger kernel import ./linux-image.deb")
	kernel.AddCommand(newKernelList(a), newKernelShow(a), newKernelPull(a), newKernelImport(a), newKernelDelete(a), newKernelCatalog(a))
	daemon := newGroup("daemon", "The daemon", daemonHelp, "  banger daemon status\n  banger daemon logs --follow")
	daemon.AddCommand(newDaemonStatus(a), newDaemonStop(a), newDaemonLogs(a), newDaemonRun(a))
	operation := newGroup("operation", "Long work of the daemon", operationHelp, "  banger operation list\n  banger operation watch 3f2a")
	operation.AddCommand(newOperationList(a), newOperationWatch(a), newOperationCancel(a))
	add("nouns", vm, image, kernel, newTemplateGroup(a), operation, daemon)
	add("rest", newSSHConfig(a), newEvents(a), newDoctor(a), newBenchmark(a), newVersion(a), newCompletion())
	add("rest", newMonitor(a), newSSHProxy(a)) // hidden
	return root
}

// newGroup makes a command that only has subcommands. Its help is a landing page.
func newGroup(use, short, long, example string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			cmd.SuggestionsMinimumDistance = 2
			err := usagef("unknown command %q for %q", args[0], cmd.CommandPath())
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return err.withHint("%s %s", cmd.CommandPath(), near[0])
			}
			return err.withHint("%s --help", cmd.CommandPath())
		},
	}
}

// flagError makes a usage error of what pflag found, with the flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	usage := &usageError{err: err, hint: cmd.CommandPath() + " --help"}
	if hint := hintOf(err); hint != "" { // of a value's own parser
		usage.hint = hint
	}
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		return usage
	}
	name := missing.GetSpecifiedName()
	usage.err = errors.New(strings.TrimSuffix(err.Error(), ".") + " of " + cmd.CommandPath())
	if best := nearestFlag(cmd, name); best != "" {
		usage.hint = "--" + best
	}
	return usage
}

// nearestFlag returns the flag of a command that is at most two edits away from a name.
func nearestFlag(cmd *cobra.Command, name string) string {
	best, least := "", 3
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := editDistance(name, f.Name); !f.Hidden && d < least && d < len(name) {
			best, least = f.Name, d
		}
	})
	return best
}

// editDistance is the number of bytes to insert, delete or replace (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
