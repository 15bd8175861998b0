package machines

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/fault"
	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hypervisor"
	"banger/internal/microvm"
	"banger/internal/monitorlink"
	"banger/internal/progress"
)

// suits refuses an image that cannot do what is asked of the VM, before anything is made.
func suits(spec microvm.Spec, image Image) error {
	if spec.Init == microvm.InitSystemd && !image.HasSystemd {
		return fault.New(fault.Precondition, "the image %s has no systemd", spec.Image).
			WithHint("leave --init out, or use --init agent")
	}
	if _, err := stopSignal(image.Config.StopSignal); err != nil {
		return fault.New(fault.Invalid, "the image %s: %w", spec.Image, err)
	}
	return nil
}

// withImage completes a specification with what the image says. A main process whose command is left to the image is
// none if the image has nothing that could be one.
func withImage(spec microvm.Spec, image Image) microvm.Spec {
	spec.ImageConfig = image.Config
	if spec.Main == nil {
		return spec
	}
	main := *spec.Main
	if len(main.Args) == 0 {
		main.Args = image.Config.Service()
	}
	spec.Main = &main
	if len(main.Args) == 0 {
		spec.Main = nil
	}
	return spec
}

// Command completes a command with what its VM's image says: user, directory, and environment, over which the command's
// own wins.
func Command(image microvm.ImageConfig, cmd guestproto.ExecSpec) guestproto.ExecSpec {
	if cmd.User == "" {
		cmd.User = image.User
	}
	if cmd.Dir == "" && image.Dir != "" {
		cmd.Dir, cmd.MakeDir = image.Dir, true
	}
	cmd.Env = slices.Concat(image.Env, cmd.Env)
	return cmd
}

// mainSpec is what the agent is told of the VM's main process.
func mainSpec(spec microvm.Spec) guestproto.MainSpec {
	signal, err := stopSignal(spec.ImageConfig.StopSignal)
	if err != nil {
		signal = int(unix.SIGTERM) // checked at creation
	}
	cmd := guestproto.ExecSpec{Args: spec.Main.Args, Dir: spec.Main.Dir, User: spec.Main.User}
	for k, v := range spec.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return guestproto.MainSpec{Exec: Command(spec.ImageConfig, cmd), StopSignal: signal}
}

// initOf decides who is process 1. A VM that is there for one program boots no systemd unless told to: the image may have
// it by accident, and would not run it elsewhere either.
func initOf(spec microvm.Spec) guestproto.Init {
	if spec.Init == microvm.InitAuto && spec.Main != nil {
		return guestproto.InitAgent
	}
	return guestproto.Init(spec.Init)
}

// mainTimeout bounds how long a ready agent may take to start the main process.
const mainTimeout = 30 * time.Second

// startMain starts the VM's main process, if it has one, in a guest that is ready. A guest that has started it already
// leaves it at that.
func startMain(ctx context.Context, h *hold, a *attachment, report progress.Sink) error {
	if h.vm.Spec.Main == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, mainTimeout)
	defer cancel()
	end := report.Stage("start program")
	err := guestlink.NewClient(a.client).Main(ctx, mainSpec(h.vm.Spec))
	if fault.Is(err, fault.Unavailable) {
		select {
		case <-a.done: // a short program: it has taken the guest down before the answer came
			if a.exit.Cause == monitorlink.Cause(hypervisor.GuestShutdown) {
				err = nil
			}
		case <-time.After(askTimeout):
		}
	}
	end(err)
	if err != nil {
		return fault.New(fault.Precondition, "its main process: %w", err)
	}
	return nil
}

// stopSignal reads the StopSignal of an image: "SIGQUIT", "QUIT", "3" or "SIGRTMIN+3"; empty means SIGTERM.
func stopSignal(text string) (int, error) {
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")
	n, err := strconv.Atoi(text)
	switch {
	case text == "":
		return int(unix.SIGTERM), nil
	case err == nil:
	case unix.SignalNum(name) != 0:
		n = int(unix.SignalNum(name))
	default:
		const rtmin, rtmax = 34, 64 // as the C libraries have them, signal(7)
		if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
			n, err = offset(rest)
			n += rtmin
		} else if rest, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
			n, err = offset(rest)
			n += rtmax
		}
		if err != nil {
			n = 0
		}
	}
	if err := guestproto.CheckSignal(n); err != nil {
		return 0, fault.New(fault.Invalid, "unknown stop signal %.40q", text)
	}
	return n, nil
}

// offset reads "", "+3" or "-3".
func offset(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	return strconv.Atoi(text)
}
