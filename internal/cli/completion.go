package cli

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// completionTimeout is how long somebody who pressed Tab waits for names.
const completionTimeout = time.Second

func newCompletion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion <shell>",
		Short: "Print the completion script of a shell: bash, zsh or fish",
		Long: `Print the completion script of a shell. It knows the names of VMs, images and kernels.

For the running shell:
  bash  source <(banger completion bash)
  zsh   source <(banger completion zsh)
  fish  banger completion fish | source

For all later ones, put that line into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish.`,
		Example:           "  banger completion bash",
		ValidArgsFunction: fixed(shells...),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return usagef("completion takes the name of one shell").withHint("use bash, zsh or fish")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			default:
				return root.GenFishCompletion(out, true)
			}
		},
	}
}

// names is cobra's type of a function that completes.
type names = cobra.CompletionFunc

// noCompletion is for arguments that nothing can be suggested for, file names least of all.
func noCompletion(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func fixed(words ...string) names {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// complete gives a flag its completion.
func complete(cmd *cobra.Command, flag string, f names) {
	_ = cmd.RegisterFlagCompletionFunc(flag, f) // fails only for a flag that is not there
}

// completer suggests names of what there is.
type completer struct{ app *app }

// ask completes with what a running daemon says. It starts none and keeps silent about every failure.
func (c completer) ask(
	cmd *cobra.Command, used []string, question func(context.Context, *rpcclient.Client) ([]string, error),
) ([]string, cobra.ShellCompDirective) {
	c.app.quiet = true
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	client, err := c.app.connectRunning(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	answers, err := question(ctx, client)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.DeleteFunc(answers, func(s string) bool { return slices.Contains(used, s) }), cobra.ShellCompDirectiveNoFileComp
}

func (c completer) vms(cmd *cobra.Command, used []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.ask(cmd, used, func(ctx context.Context, client *rpcclient.Client) ([]string, error) {
		res, err := client.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{}))
		if err != nil {
			return nil, err
		}
		var out []string
		for _, vm := range res.Msg.GetVms() {
			out = append(out, vm.GetName())
		}
		return out, nil
	})
}

func (c completer) oneVM(cmd *cobra.Command, used []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(used) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.vms(cmd, used, prefix)
}

func (c completer) images(cmd *cobra.Command, used []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.ask(cmd, used, func(ctx context.Context, client *rpcclient.Client) ([]string, error) {
		res, err := client.Images.ListImages(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{}))
		if err != nil {
			return nil, err
		}
		var out []string
		for _, im := range res.Msg.GetImages() {
			out = append(out, im.GetName())
		}
		return out, nil
	})
}

// presentImages are the images that are here.
func (c completer) presentImages(cmd *cobra.Command, used []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.ask(cmd, used, func(ctx context.Context, client *rpcclient.Client) ([]string, error) {
		res, err := client.Images.ListImages(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{}))
		if err != nil {
			return nil, err
		}
		var out []string
		for _, im := range res.Msg.GetImages() {
			if im.GetDigest() != "" && im.GetName() != "" {
				out = append(out, im.GetName())
			}
		}
		return out, nil
	})
}

func (c completer) kernels(cmd *cobra.Command, used []string, _ string) ([]string, cobra.ShellCompDirective) {
	return c.ask(cmd, used, func(ctx context.Context, client *rpcclient.Client) ([]string, error) {
		res, err := client.Kernels.ListKernels(ctx, connect.NewRequest(&bangerv1.ListKernelsRequest{Available: true}))
		if err != nil {
			return nil, err
		}
		var out []string
		for _, k := range res.Msg.GetKernels() {
			out = append(out, k.GetName())
		}
		return out, nil
	})
}
