package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
)

// endless is an input that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A command that does not read its input can be interrupted nevertheless: no more is sent than there is credit for.
func TestSignalPassesUnreadInput(t *testing.T) {
	t.Parallel()
	const more = 1000 // bytes that the command reads after all
	var b *bench
	b = newBench(t, &fakeDaemon{attach: func(_ context.Context, s *attached) error {
		if err := s.started(); err != nil {
			return err
		}
		for got, want := 0, 64<<10; ; {
			m, err := s.Receive()
			if err != nil {
				return err
			}
			got += len(m.GetStdin())
			switch {
			case got > want:
				return fmt.Errorf("%d bytes came, with credit for %d", got, want)
			case m.GetSignal() == int32(syscall.SIGTERM):
				return s.exit(3)
			case got == 64<<10 && want == got:
				want += more
				if err := s.credit(more); err != nil {
					return err
				}
			case got == want:
				b.signals <- syscall.SIGTERM
			case m.GetCloseStdin():
				return errors.New("the input has an end")
			}
		}
	}})
	b.stdin = endless{}
	b.run("exec", "box", "--", "sleep", "1000").want(t, 3, "", "")
}
