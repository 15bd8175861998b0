package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

// imageView is an image in JSON and YAML. Sizes are in bytes.
type imageView struct {
	Name    string `json:"name"`
	Digest  string `json:"digest"` // empty: in the catalogue, not present yet
	Present bool   `json:"present"`
	imageSizes
	CreatedAt  *time.Time      `json:"created_at"`
	Source     string          `json:"source"`
	Users      []string        `json:"users"` // names of VMs
	Damaged    string          `json:"damaged"`
	Manifest   string          `json:"manifest"`
	Platform   string          `json:"platform"`
	HasSystemd bool            `json:"has_systemd"`
	Registered bool            `json:"registered"`
	Path       string          `json:"path"`
	Kernel     string          `json:"kernel"` // empty: the default
	Config     imageConfigView `json:"config"`
}

// imageSizes says how large an image is.
type imageSizes struct {
	Size       int64 `json:"size"`        // apparent
	UniqueSize int64 `json:"unique_size"` // on the disk: what deleting it frees
	SharedSize int64 `json:"shared_size"` // on the disk: what other images have in common with it
}

// imageConfigView says how an image wants to be run.
type imageConfigView struct {
	Entrypoint   []string          `json:"entrypoint"`
	Cmd          []string          `json:"cmd"`
	Env          []string          `json:"env"`
	WorkDir      string            `json:"workdir"`
	User         string            `json:"user"`
	Labels       map[string]string `json:"labels"`
	ExposedPorts []string          `json:"exposed_ports"`
	Volumes      []string          `json:"volumes"`
	StopSignal   string            `json:"stop_signal"`
}

func viewImage(im *bangerv1.Image) imageView {
	c := im.GetConfig()
	labels := c.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	return imageView{
		Name: im.GetName(), Digest: im.GetDigest(), Present: im.GetDigest() != "", imageSizes: imageSizes{im.GetSize(), im.GetUniqueSize(), im.GetSharedSize()},
		CreatedAt: stamp(im.GetCreatedAt()), Source: im.GetSource(), Users: texts(im.GetUsers()),
		Damaged: im.GetDamaged(), Manifest: im.GetManifest(), Platform: im.GetPlatform(), HasSystemd: im.GetHasSystemd(),
		Registered: im.GetRegistered(), Path: im.GetPath(), Kernel: im.GetKernel(),
		Config: imageConfigView{
			Entrypoint: texts(c.GetEntrypoint()), Cmd: texts(c.GetCmd()), Env: texts(c.GetEnv()), WorkDir: c.GetWorkdir(), User: c.GetUser(),
			Labels: labels, ExposedPorts: texts(c.GetExposedPorts()), Volumes: texts(c.GetVolumes()), StopSignal: c.GetStopSignal(),
		},
	}
}

// texts makes a list that is written as a list, even if nothing is in it.
func texts(list []string) []string { return append([]string{}, list...) }

func newImageList(a *app) *cobra.Command {
	o := &outputFlags{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images",
		Long: `List the images that are here and those of the catalogue. UNIQUE is what deleting an image frees on the disk, SHARED
what other images have in common with it. An image without a name was replaced by a newer one and is still in use by a VM.`,
		Example:           "  banger image list\n  banger image list --output json",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), a, o) },
		ValidArgsFunction: noCompletion,
	}
	o.register(cmd)
	o.registerIDs(cmd, "names")
	return cmd
}

func runImageList(ctx context.Context, a *app, o *outputFlags) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	res, err := client.Images.ListImages(ctx, connect.NewRequest(&bangerv1.ListImagesRequest{}))
	if err != nil {
		return err
	}
	views := make([]imageView, len(res.Msg.GetImages()))
	t := &table{head: []string{"NAME", "DIGEST", "SIZE", "UNIQUE", "SHARED", "AGE", "USERS", "SOURCE"}}
	for i, im := range res.Msg.GetImages() {
		views[i] = viewImage(im)
		if o.ids {
			if im.GetName() == "" {
				continue
			}
			if err := a.printLine(im.GetName()); err != nil {
				return err
			}
			continue
		}
		name, users := im.GetName(), ""
		if name == "" {
			name = "<none>"
		}
		if n := len(im.GetUsers()); n > 0 {
			users = itoa(n)
		}
		t.add(name, shortDigest(im.GetDigest()), size(im.GetSize()), size(im.GetUniqueSize()), size(im.GetSharedSize()),
			age(time.Now(), when(im.GetCreatedAt())), users, im.GetSource())
	}
	if o.ids {
		return nil
	}
	return o.write(a, views, func(w io.Writer) error { return t.write(w) })
}

// shortDigest is what of a digest fits into a table; "-" stands for an image that is not here yet.
func shortDigest(digest string) string {
	if digest == "" {
		return "-"
	}
	_, hex, ok := strings.Cut(digest, ":")
	if !ok {
		hex = digest
	}
	return hex[:min(len(hex), 12)]
}

func newImagePull(a *app) *cobra.Command {
	var timings timingsFlag
	var platform string
	cmd := &cobra.Command{
		Use:   "pull <image>...",
		Short: "Fetch or build images",
		Long: `Fetch images of a registry, or build those of the catalogue, so that the first VM made from them starts at once. A name of
the catalogue goes before one of a registry. A tag that has moved in its registry is followed; VMs keep the image that they
have. Credentials are those of docker login or podman login.`,
		Example: "  banger image pull debian-bookworm\n  banger image pull alpine:3.20",
		Args:    someOf("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImagePull(cmd.Context(), a, args, platform, &timings)
		},
		ValidArgsFunction: completer{a}.images,
	}
	timings.register(cmd)
	cmd.Flags().StringVar(&platform, "platform", "", "of an image made for several: linux/amd64 (default: this host's)")
	complete(cmd, "platform", fixed("linux/amd64", "linux/arm64"))
	return cmd
}

func runImagePull(ctx context.Context, a *app, names []string, platform string, timings *timingsFlag) error {
	d := a.newDisplay()
	defer d.keep()
	defer timings.begin(a, d)()
	client, err := a.connectTimed(ctx, d)
	if err != nil {
		return err
	}
	var done []string
	for _, name := range names {
		last, callErr := followOrCancel(ctx, client, d, "",
			func(ctx context.Context) (*connect.ServerStreamForClient[bangerv1.Event], error) {
				return client.Images.PullImage(ctx, connect.NewRequest(&bangerv1.PullImageRequest{Name: name, Platform: platform}))
			})
		if callErr != nil {
			err = fmt.Errorf("pull %q: %w", name, callErr)
			break
		}
		done = append(done, last.GetImage().GetName()+" "+last.GetImage().GetDigest())
	}
	d.keep() // before anything is printed over it
	for _, line := range done {
		if printErr := a.printLine(line); printErr != nil {
			return printErr
		}
	}
	return err
}
