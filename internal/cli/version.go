package cli

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/version"
)

// versionView is the build in JSON and YAML.
type versionView struct {
	Version  string     `json:"version"`
	Commit   string     `json:"commit"`
	BuiltAt  *time.Time `json:"built_at"`
	Go       string     `json:"go"`
	Platform string     `json:"platform"`
}

func newVersion(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Say which build this is",
		Long:              "Say which build of banger this command is. The daemon's is in: banger daemon status",
		Example:           "  banger version\n  banger version --output json",
		Args:              noArgs,
		RunE:              func(*cobra.Command, []string) error { return runVersion(a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	return cmd
}

func runVersion(a *app, o *outputFlags) error {
	info := version.Get()
	v := versionView{Version: info.Release, Commit: info.Commit, Go: info.Go, Platform: info.Platform}
	if !info.Built.IsZero() {
		v.BuiltAt = &info.Built
	}
	return o.write(a, v, func(w io.Writer) error {
		_, err := io.WriteString(w, "banger "+info.String()+"\n")
		return err
	})
}
