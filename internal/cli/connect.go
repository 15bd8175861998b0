package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"banger/internal/config"
	"banger/internal/rpcclient"
	"banger/internal/version"
)

// connect returns the connection to the daemon, which it starts if need be.
func (a *app) connect(ctx context.Context) (*rpcclient.Client, error) {
	return a.dial(ctx, a.sys.Executable != "")
}

// connectRunning is connect without starting a daemon: what it fails with is of kind Unavailable if there is none.
func (a *app) connectRunning(ctx context.Context) (*rpcclient.Client, error) {
	return a.dial(ctx, false)
}

func (a *app) dial(ctx context.Context, start bool) (*rpcclient.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	paths, err := a.paths()
	if err != nil {
		return nil, err
	}
	o := rpcclient.Options{Socket: paths.Socket(), Log: paths.DaemonLog()}
	if start {
		o.Start = []string{a.sys.Executable, "daemon", "run"}
	}
	// What we say to a socket is done with our rights: before that, see that its directory is ours.
	if _, err := os.Stat(paths.Runtime); start || !errors.Is(err, fs.ErrNotExist) {
		if err := paths.EnsureDirs(); err != nil {
			return nil, err
		}
	}
	client, err := rpcclient.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	a.client = client
	if theirs, ours := client.Status.GetVersion(), version.Get().String(); theirs != ours && !a.quiet {
		a.say("the daemon is version %s and this command %s; to have the daemon renewed (VMs go on running): banger daemon stop",
			theirs, ours)
	}
	return client, nil
}

// connectTimed is connect as a stage in the table of timings.
func (a *app) connectTimed(ctx context.Context, d *display) (*rpcclient.Client, error) {
	began := time.Now()
	client, err := a.connect(ctx)
	d.record("connect", time.Since(began))
	return client, err
}

func (a *app) paths() (config.Paths, error) {
	c, err := config.Load(a.env)
	return c.Paths, err
}

func (a *app) close() {
	if a.client != nil {
		a.client.Close()
	}
}
