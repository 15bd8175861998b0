package machines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// fillHome puts the user's files onto the work disk when the VM starts for the first time: what the guest makes of them
// later is the guest's. It is never a reason not to start; what did not work is told, and tried again at the next start.
func fillHome(ctx context.Context, h *hold, a *attachment, report progress.Sink) {
	if h.config.Home == nil || isTemplate(h.vm) {
		return
	}
	mark := filepath.Join(h.dirs().State, homeMark)
	if _, err := os.Stat(mark); !errors.Is(err, fs.ErrNotExist) {
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
	err := sendHome(ctx, h.config.Home, guestlink.NewClient(a.client), warn)
	if err == nil {
		err = os.WriteFile(mark, nil, 0o600)
	}
	if err != nil {
		warn(err.Error())
	}
}

func sendHome(ctx context.Context, home HomeFiles, guest *guestlink.Client, warn func(string)) error {
	defaults, err := home.Defaults(ctx)
	if err != nil {
		return fmt.Errorf("collect files for the home directory: %w", err)
	}
	files, err := home.Files(ctx, warn)
	if err != nil {
		return fmt.Errorf("collect files for the home directory: %w", err)
	}
	if len(defaults) > 0 {
		if err := guest.PutHome(ctx, bytes.NewReader(defaults), guestlink.PutOptions{Keep: true}); err != nil {
			return fmt.Errorf("fill the home directory: %w", err)
		}
	}
	if len(files) > 0 {
		if err := guest.PutHome(ctx, bytes.NewReader(files), guestlink.PutOptions{}); err != nil {
			return fmt.Errorf("fill the home directory: %w", err)
		}
	}
	return nil
}
