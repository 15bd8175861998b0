package cli

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "banger/internal/gen/banger/v1"
)

func TestFormats(t *testing.T) {
	t.Parallel()
	for in, want := range map[time.Duration]string{
		100 * time.Microsecond: "0.1ms", 340 * time.Millisecond: "340ms", 12300 * time.Millisecond: "12.3s",
		125 * time.Second: "2m05s", 62 * time.Minute: "1h02m",
	} {
		if got := duration(in); got != want {
			t.Errorf("duration(%d) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[int64]string{
		0: "", 5: "5B", 1 << 30: "1GiB", 1536 << 20: "1.5GiB", 512 << 20: "512MiB", 1500: "1.5KiB", 1<<50 + 1<<40: "1025TiB",
	} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %q, want %q", in, got, want)
		}
	}
	now := time.Unix(1e9, 0)
	for in, want := range map[time.Duration]string{
		-time.Hour: "0s", 59 * time.Second: "59s", 90 * time.Second: "1m", 47 * time.Hour: "47h", 72 * time.Hour: "3d",
	} {
		if got := age(now, now.Add(-in)); got != want {
			t.Errorf("age(%s) = %q, want %q", in, got, want)
		}
	}
	if got := age(now, time.Time{}); got != "" {
		t.Errorf("no time has the age %q", got)
	}
}

func TestEditDistance(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"image", "imgae", 2}, {"memory", "memry", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(tc.a, tc.b); got != tc.want {
			t.Errorf("%q, %q: %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, seed := range []string{"", "plain", "a\x1b[2Jb", "\u202eabc", "\xff\xfe", "\u0085\u009b1m"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range oneLine(s) {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				t.Errorf("%q holds %U", oneLine(s), r)
			}
		}
	})
}

func TestYAML(t *testing.T) {
	t.Parallel()
	value := []any{
		map[string]any{"a": "plain text", "b": "true", "c": "", "d": "x: y", "e": "1.5", "f": "-x", "g": "a\nb\x1b\u007f\u2028", "h": "#"},
		[]any{1, 2.5, nil, true, []any{}, map[string]any{}, []any{"nested", map[string]any{"k": []any{"v"}}}},
		"x ",
	}
	var out strings.Builder
	if err := writeYAML(&out, value); err != nil {
		t.Fatal(err)
	}
	golden(t, "values.yaml", out.String())
}

func report(stage string, ended bool, elapsed time.Duration) *bangerv1.Progress {
	p := &bangerv1.Progress{Stage: stage, Ended: ended}
	if ended {
		p.Elapsed = durationpb.New(elapsed)
	}
	return p
}

func TestPlainDisplay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		d := &display{w: &out, mode: displayPlain}
		d.update("", report("quick", false, 0))
		time.Sleep(900 * time.Millisecond)
		d.update("", report("quick", true, 900*time.Millisecond))
		d.update("box", report("pull", false, 0))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := out.String(); got != "banger: box: pull ...\n" {
			t.Errorf("after a second: %q", got)
		}
		time.Sleep(11300 * time.Millisecond)
		d.update("box", report("pull", true, 12300*time.Millisecond))
		d.update("", report("late", false, 0))
		d.keep()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := out.String(); got != "banger: box: pull ...\nbanger: box: pull ... 12.3s\n" {
			t.Errorf("at the end: %q", got)
		}
	})
}

func TestLiveDisplay(t *testing.T) {
	t.Parallel()
	run := func(end func(*display)) (during, final string) {
		synctest.Test(t, func(*testing.T) {
			var out strings.Builder
			d := &display{w: &out, mode: displayLive, size: func() (int, int) { return 24, 40 }}
			d.update("", report("quick", false, 0))
			d.update("", report("quick", true, time.Millisecond))
			d.update("", report("long", false, 0))
			d.update("", report("fetch", false, 0))
			time.Sleep(2050 * time.Millisecond)
			d.update("", report("long", true, 2*time.Second))
			d.update("", &bangerv1.Progress{
				Stage: "fetch", Current: 512 << 10, Total: 1 << 20, Unit: "bytes", Detail: "layer\x1b[2J" + strings.Repeat("z", 40),
			})
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			during = out.String()
			out.Reset()
			end(d)
			d.update("", report("fetch", true, time.Hour)) // too late
			final = out.String()
		})
		return during, final
	}
	during, erased := run((*display).erase)
	last := during[strings.LastIndex(during, "\x1b[J")+len("\x1b[J"):]
	lines := strings.Split(last, "\n")
	if len(lines) != 3 || lines[0] != "✓ long  2.0s" || !strings.Contains(lines[1], " fetch  2s  50%  512KiB of 1MiB") ||
		!strings.HasSuffix(lines[1], "…") || len([]rune(lines[1])) > 39 {
		t.Errorf("the display: %q", lines)
	}
	if erased != "\x1b[2F\x1b[J" {
		t.Errorf("erased by %q", erased)
	}
	if _, kept := run((*display).keep); kept != "\x1b[2F\x1b[J✓ long  2.0s\n" {
		t.Errorf("kept %q", kept)
	}
}

func TestNoDisplay(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	d := &display{w: &out, mode: displayNone}
	d.update("", report("long", false, 0))
	d.update("", &bangerv1.Progress{Stage: "long", Ended: true, Error: "boom", Elapsed: durationpb.New(time.Hour)})
	d.keep()
	if out.String() != "" {
		t.Errorf("shown: %q", out.String())
	}
	d.timings(&out, 2*time.Hour)
	if want := "STAGE  TIME\nlong   1h00m failed\ntotal  2h00m\n"; out.String() != want {
		t.Errorf("timings %q, want %q", out.String(), want)
	}
}
