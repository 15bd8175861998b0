package machines

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"banger/internal/guestlink"
	"banger/internal/progress"
)

// HomeFiles is what the user wants in the home directory of every VM, as tar archives; nil: nothing.
type HomeFiles interface {
	// Defaults are files of which an image may have its own version.
	Defaults(ctx context.Context) ([]byte, error)
	// Files replace what the image has. What can't be had is told to warn and left out.
	Files(ctx context.Context, warn func(string)) ([]byte, error)
}

// homeTimeout bounds the filling of the home directory.
const homeTimeout = 30 * time.Second

// homeMark is the file in a VM's directory that says that its home has been filled.
const homeMark = "home"

const homeStage = "home files"

// gathered is what the user wants in the home directory of a VM, as it was found on the host.
type gathered struct {
	defaults, files []byte // tar archives
	warnings        []string
	err             error
}

// gather begins to collect the user's files for a VM that starts for the first time, and returns how to get them; nil: there
// are none, or the VM has them. The collecting goes on beside the start of the VM.
func gather(ctx context.Context, h *hold) func() gathered {
	if h.config.Home == nil || isTemplate(h.vm) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(h.dirs().State, homeMark)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	done := make(chan gathered, 1)
	go func() { done <- gatherHome(ctx, h.config.Home) }()
	return sync.OnceValue(func() gathered { return <-done })
}

func gatherHome(ctx context.Context, home HomeFiles) (g gathered) {
	ctx, cancel := context.WithTimeout(ctx, homeTimeout)
	defer cancel()
	g.defaults, g.err = home.Defaults(ctx)
	if g.err == nil {
		g.files, g.err = home.Files(ctx, func(text string) { g.warnings = append(g.warnings, text) })
	}
	if g.err != nil {
		g.err = fmt.Errorf("collect files for the home directory: %w", g.err)
	}
	return g
}

// fillHome puts the user's files onto the work disk when the VM starts for the first time: what the guest makes of them
// later is the guest's. It is never a reason not to start; what did not work is told, and tried again at the next start.
func fillHome(ctx context.Context, h *hold, a *attachment, get func() gathered, report progress.Sink) {
	if get == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, homeTimeout)
	defer cancel()
	end := report.Stage(homeStage)
	defer end(nil)
	warn := func(text string) {
		h.log.WarnContext(ctx, "home files", "vm", h.vm.ID, "detail", text)
		report.Send(progress.Update{Stage: homeStage, Warning: text})
	}
	files := get()
	for _, text := range files.warnings {
		warn(text)
	}
	err := files.send(ctx, guestlink.NewClient(a.client))
	if err == nil {
		err = os.WriteFile(filepath.Join(h.dirs().State, homeMark), nil, 0o600)
	}
	if err != nil {
		warn(err.Error())
	}
}

// sum tells two collections apart that differ in more than the times of the files.
func (g gathered) sum() string {
	hash := sha256.New()
	for _, archive := range [][]byte{g.defaults, g.files} {
		r := tar.NewReader(bytes.NewReader(archive))
		for {
			e, err := r.Next()
			if err != nil {
				_, _ = fmt.Fprintln(hash, "end") // of what we have made ourselves
				break
			}
			_, _ = fmt.Fprintf(hash, "%q %q %o %c %d\n", e.Name, e.Linkname, e.Mode, e.Typeflag, e.Size)
			_, _ = io.Copy(hash, r) // never fails on memory
		}
	}
	return hex.EncodeToString(hash.Sum(nil))
}

func (g gathered) send(ctx context.Context, guest *guestlink.Client) error {
	if g.err != nil {
		return g.err
	}
	if len(g.defaults) > 0 {
		if err := guest.PutHome(ctx, bytes.NewReader(g.defaults), guestlink.PutOptions{Keep: true}); err != nil {
			return fmt.Errorf("fill the home directory: %w", err)
		}
	}
	if len(g.files) > 0 {
		if err := guest.PutHome(ctx, bytes.NewReader(g.files), guestlink.PutOptions{}); err != nil {
			return fmt.Errorf("fill the home directory: %w", err)
		}
	}
	return nil
}
