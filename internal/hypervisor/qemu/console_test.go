package qemu

import (
	"io"
	"net"
	"strings"
	"testing"
)

func TestConsoleIsWatched(t *testing.T) {
	t.Parallel()
	line := "[    2.5] " + timerLost + "\r\n"
	for name, c := range map[string]struct {
		said string
		want int
	}{
		"never":         {strings.Repeat("all is well\r\n", 1000), 0},
		"at once":       {line, 1},
		"later":         {strings.Repeat("x", watchLimit/2) + line, 1},
		"twice":         {line + line, 1},
		"after a start": {strings.Repeat("x", watchLimit+1) + line, 0},
	} {
		for _, piece := range []int{1, 7, 4096} {
			ours, theirs := net.Pipe()
			lost := 0
			w := newWatchedConsole(ours, func() { lost++ })
			go func() {
				_, _ = io.WriteString(theirs, c.said)
				_ = theirs.Close()
			}()
			var got strings.Builder
			_, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{w}, make([]byte, piece))
			if err != nil || got.String() != c.said {
				t.Errorf("%s: read %d bytes, %v, want %d", name, got.Len(), err, len(c.said))
			}
			if lost != c.want {
				t.Errorf("%s, in pieces of %d: the loss was told %d times, want %d", name, piece, lost, c.want)
			}
		}
	}
}
