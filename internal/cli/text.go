package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"banger/internal/microvm"
)

// printable makes text from anywhere, guests included, safe to show: control characters, which could move the cursor
// or worse, become question marks. Line breaks and tabs stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return r
		case r == utf8.RuneError, unicode.IsControl(r), unicode.Is(unicode.Cf, r):
			return '?'
		}
		return r
	}, s)
}

// oneLine is printable, with line breaks and tabs as spaces.
func oneLine(s string) string {
	return strings.Join(strings.Fields(printable(s)), " ")
}

// painter colours text, or leaves it as it is.
type painter struct{ on bool }

func (p painter) green(s string) string  { return p.sgr("32", s) }
func (p painter) yellow(s string) string { return p.sgr("33", s) }
func (p painter) red(s string) string    { return p.sgr("31", s) }
func (p painter) dim(s string) string    { return p.sgr("2", s) }
func (p painter) bold(s string) string   { return p.sgr("1", s) }

// sgr selects a graphic rendition (ECMA-48, 8.3.117) for a text.
func (p painter) sgr(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// table is rows of cells in aligned columns, for people.
type table struct {
	head []string
	rows [][]string
	// style colours a cell; nil: none. It can't change what is shown, so that columns stay aligned.
	style func(column int, cell string) string
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = oneLine(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) write(w io.Writer) error {
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	line := func(row []string, style func(int, string) string) {
		last := len(row) - 1
		for last > 0 && row[last] == "" {
			last--
		}
		for i, cell := range row[:last+1] {
			shown := cell
			if style != nil {
				shown = style(i, cell)
			}
			b.WriteString(shown)
			if i < last {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	line(t.head, nil)
	for _, row := range t.rows {
		line(row, t.style)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// duration writes how long something took: 340ms, 12.3s, 2m05s, 1h02m.
func duration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
}

// age writes how long ago something was, roughly: 5s, 3m, 7h, 12d. A zero time has no age.
func age(now, then time.Time) string {
	if then.IsZero() {
		return ""
	}
	switch d := max(now.Sub(then), 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// size writes a number of bytes for people, with one decimal where it is not a whole number of units.
func size(n int64) string {
	if n <= 0 {
		return ""
	}
	if n < 1<<10 {
		return fmt.Sprintf("%dB", n)
	}
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	f, unit := float64(n), ""
	for _, u := range units {
		f, unit = f/1024, u
		if f < 1024 {
			break
		}
	}
	if exact := microvm.FormatSize(n); strings.HasSuffix(exact, unit) {
		return exact
	}
	return fmt.Sprintf("%.1f%s", f, unit)
}
