package cli

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/fault"
	"banger/internal/sshclient"
)

func newSSHConfig(a *app) *cobra.Command {
	var install, uninstall bool
	cmd := &cobra.Command{
		Use:   "ssh-config",
		Short: `Make "ssh NAME.vm" reach VMs, for ssh, scp, rsync, git and editors`,
		Long: `Print the configuration by which ssh reaches VMs as NAME.vm; --install makes ~/.ssh/config include it, and --uninstall takes
that back. It is one marked block with one line; nothing else in the file is touched.

Every name that ends in .vm then leads to the VM of that name, as root unless you write user@NAME.vm. The key and the host key are
banger's own. No port is opened: ssh runs banger, which talks to the VM.`,
		Example: `  banger ssh-config
  banger ssh-config --install
  banger ssh-config --uninstall`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%s takes no arguments", cmd.CommandPath()).withHint("%s", cmd.UseLine())
			}
			if install && uninstall {
				return usagef("--install and --uninstall exclude each other")
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			switch {
			case install:
				return runSSHInstall(a)
			case uninstall:
				return runSSHUninstall(a)
			}
			_, text, err := sshConfig(a)
			if err != nil {
				return err
			}
			_, err = a.sys.Stdout.Write([]byte(text))
			return err
		},
		ValidArgsFunction: noCompletion,
	}
	cmd.Flags().BoolVar(&install, "install", false, "include it in ~/.ssh/config")
	cmd.Flags().BoolVar(&uninstall, "uninstall", false, "take that back")
	return cmd
}

// sshConfig returns the configuration for ssh and where it is to be, so that it may be included.
func sshConfig(a *app) (path, text string, err error) {
	setup, err := sshSetup(a)
	if err != nil {
		return "", "", err
	}
	setup.Env = proxyEnv(a)
	if text, err = setup.Config(); err != nil {
		return "", "", err
	}
	return filepath.Join(filepath.Dir(setup.Identity), "config"), text, nil
}

// userConfig is where ssh looks for the user's configuration.
func userConfig(a *app) (string, error) {
	home := a.env("HOME")
	if !filepath.IsAbs(home) {
		return "", fault.New(fault.Invalid, "no home directory: HOME is not an absolute path").WithHint("set HOME")
	}
	return filepath.Join(home, ".ssh", "config"), nil
}

func runSSHInstall(a *app) error {
	user, err := userConfig(a)
	if err != nil {
		return err
	}
	path, text, err := sshConfig(a)
	if err != nil {
		return err
	}
	if err := sshclient.WriteFile(path, text); err != nil {
		return err
	}
	changed, err := sshclient.Install(user, path)
	if err != nil {
		return err
	}
	if !changed {
		return a.printLine(user + " includes " + path + " already")
	}
	return a.printLine(user + ` includes ` + path + ` now: ssh NAME` + sshclient.Domain)
}

func runSSHUninstall(a *app) error {
	user, err := userConfig(a)
	if err != nil {
		return err
	}
	changed, err := sshclient.Uninstall(user)
	if err != nil {
		return err
	}
	paths, err := a.paths()
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(paths.SSH(), "config")); err != nil && !os.IsNotExist(err) {
		return err
	}
	if !changed {
		return a.printLine(user + " has nothing of banger's")
	}
	return a.printLine(user + " is as it was before banger")
}
