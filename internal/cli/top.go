package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	bangerv1 "banger/internal/gen/banger/v1"
)

func newTop(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "top",
		Short: "Watch what all running VMs use",
		Long: `Watch what all running VMs use, the busiest first, renewed each second. q or Ctrl-C leaves. Without a terminal one table
is printed. The columns are those of stats.`,
		Example:           "  banger vm top",
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runTop(cmd.Context(), a) },
		ValidArgsFunction: noCompletion,
	}
}

// topEvery is how often top looks.
const topEvery = time.Second

// Control sequences of the screen (xterm's, ctlseqs): the alternate screen without a cursor, and back; home; to the end of
// the line; to the end of the screen.
const (
	screenEnter   = "\x1b[?1049h\x1b[?25l"
	screenLeave   = "\x1b[?25h\x1b[?1049l"
	screenHome    = "\x1b[H"
	screenEndLine = "\x1b[K"
	screenRest    = "\x1b[J"
)

// errTopLeft is the cause of the end of top by a key.
var errTopLeft = errors.New("left top")

func runTop(ctx context.Context, a *app) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	look := func(ctx context.Context) (*table, error) {
		samples, err := newestSamples(ctx, client)
		if err != nil {
			return nil, err
		}
		return topTable(samples), nil
	}
	if !isTerminal(a.sys.Stdout) || !isTerminal(a.sys.Stdin) || !isForeground(a.sys.Stdin) {
		t, err := look(ctx)
		if err != nil {
			return err
		}
		return t.write(a.sys.Stdout)
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(context.Canceled)
	raw, err := makeRaw(a.sys.Stdin)
	if err != nil {
		return err
	}
	defer raw.restore()
	if _, err := io.WriteString(a.sys.Stdout, screenEnter); err != nil {
		return fmt.Errorf("show the table: %w", err)
	}
	defer func() { _, _ = io.WriteString(a.sys.Stdout, screenLeave) }()
	resized := make(chan struct{}, 1)
	defer a.signals.divert(func(sig syscall.Signal) bool {
		if sig == syscall.SIGWINCH {
			select {
			case resized <- struct{}{}:
			default:
			}
		}
		return sig == syscall.SIGWINCH
	})()
	go topKeys(a.sys.Stdin, raw, leave)
	err = showTop(ctx, a, look, resized)
	if errors.Is(context.Cause(ctx), errTopLeft) {
		return nil
	}
	return err
}

// topKeys reads keys until one of them leaves.
func topKeys(in io.Reader, raw *rawMode, leave context.CancelCauseFunc) {
	defer raw.restoreInPanic()
	buf := make([]byte, 64)
	for {
		n, err := in.Read(buf)
		const ctrlC, ctrlD = "\x03", "\x04"
		if err != nil || strings.ContainsAny(string(buf[:n]), "qQ"+ctrlC+ctrlD) {
			leave(errTopLeft)
			return
		}
	}
}

// showTop looks and draws until the context ends.
func showTop(ctx context.Context, a *app, look func(context.Context) (*table, error), resized <-chan struct{}) error {
	tick := time.NewTicker(topEvery)
	defer tick.Stop()
	t, err := look(ctx)
	for {
		if err != nil {
			return err
		}
		rows, cols := 24, 80
		if size := windowSize(a.sys.Stdout); size != nil {
			rows, cols = int(size.GetRows()), int(size.GetCols())
		}
		if _, err := io.WriteString(a.sys.Stdout, topScreen(t, time.Now(), rows, cols)); err != nil {
			return fmt.Errorf("show the table: %w", err)
		}
		select {
		case <-tick.C:
			t, err = look(ctx)
		case <-resized:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// topTable puts the busiest VM first.
func topTable(samples []*bangerv1.StatsResponse) *table {
	slices.SortFunc(samples, func(x, y *bangerv1.StatsResponse) int {
		return cmp.Or(cmp.Compare(y.GetSample().GetCpuPercent(), x.GetSample().GetCpuPercent()), cmp.Compare(x.GetName(), y.GetName()))
	})
	t := &table{head: statsHead()}
	for _, s := range samples {
		t.add(statsRow(s)...)
	}
	return t
}

// topScreen draws over what is there, so that nothing flickers, and cuts off what has no room.
func topScreen(t *table, now time.Time, rows, cols int) string {
	var text strings.Builder
	_ = t.write(&text) // a builder takes everything
	title := fmt.Sprintf("%s  %d running  q leaves", now.Format(time.TimeOnly), len(t.rows))
	lines := append([]string{title, ""}, strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")...)
	lines = lines[:min(len(lines), max(rows, 1))]
	for i, line := range lines {
		if utf8.RuneCountInString(line) > cols {
			line = string([]rune(line)[:cols])
		}
		lines[i] = line + screenEndLine
	}
	return screenHome + strings.Join(lines, "\r\n") + screenRest
}
