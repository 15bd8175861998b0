package cli

import (
	"context"
	"sort"

	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

type execOptions struct {
	env     []string
	user    string
	workdir string
	tty     ttyChoice
}

func newExec(a *app) *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use:   "exec <vm> [flags] [-- command...]",
		Short: "Run a command or a shell in a running VM",
		Long: `Run a command in a running VM; without one, a login shell.

The command's input and output are this terminal's, its exit status becomes banger's, and signals are passed on to it.`,
		Example: `  banger exec devbox
  banger exec devbox -- uname -a
  banger exec --user nobody devbox -- id
  echo hello | banger exec devbox -- tee /root/greeting`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, command, err := splitExec(cmd, args)
			if err != nil {
				return err
			}
			if help, _ := cmd.Flags().GetBool("help"); help {
				return cmd.Help()
			}
			return runExec(cmd.Context(), a, o, vm, command)
		},
		ValidArgsFunction: completer{a}.oneVM,
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags behind the command's name are the command's
	f.StringArrayVarP(&o.env, "env", "e", nil, "`KEY=VALUE` for the command, or KEY to take it from here; may be repeated")
	f.StringVarP(&o.user, "user", "u", "", "`user` of the command: name, uid, name:group or uid:gid")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working `directory` of the command")
	registerTTY(cmd, &o.tty)
	return cmd
}

// splitExec finds the VM and the command in "VM [flags] [--] command...". Flags may stand before and after the VM; from
// the command's first word on everything is the command's.
func splitExec(cmd *cobra.Command, args []string) (vm string, command []string, err error) {
	if len(args) == 0 {
		return "", nil, oneVM(cmd, args)
	}
	vm, command = args[0], args[1:]
	if cmd.ArgsLenAtDash() >= 0 || len(command) == 0 { // "-- VM command": no more flags
		return vm, command, nil
	}
	if err := cmd.Flags().Parse(command); err != nil {
		return "", nil, flagError(cmd, err)
	}
	return vm, cmd.Flags().Args(), nil
}

func runExec(ctx context.Context, a *app, o *execOptions, vm string, args []string) error {
	vars, err := a.environment(o.env)
	if err != nil {
		return err
	}
	env := make([]string, 0, len(vars))
	for key, value := range vars {
		env = append(env, key+"="+value)
	}
	sort.Strings(env)
	exec, err := a.execSpec(args, env, o.user, o.workdir, o.tty)
	if err != nil {
		return err
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	s := &session{
		app:     a,
		display: a.newDisplay(),
		start:   &bangerv1.AttachStart{Target: &bangerv1.AttachStart_Vm{Vm: vm}, Exec: exec},
	}
	return s.run(ctx, client.VMs.Exec)
}
