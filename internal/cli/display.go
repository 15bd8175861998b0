package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	bangerv1 "banger/internal/gen/banger/v1"
)

const (
	// quietFor is how long a stage runs before people hear of it.
	quietFor = time.Second
	// firstDraw keeps a live display from flashing up for work that is over at once.
	firstDraw  = 200 * time.Millisecond
	drawEvery  = 100 * time.Millisecond
	defaultRow = 80 // columns of a terminal that does not say
)

// displayMode says how progress is shown.
type displayMode int

const (
	displayNone  displayMode = iota
	displayPlain             // a line when a stage has lasted a second, and one when it ends
	displayLive              // redrawn in place
)

// display shows the stages of running operations on standard error and keeps their times. Its methods may be called
// from several goroutines. A live display has a goroutine that redraws it, from its first stage to close.
type display struct {
	w     io.Writer
	mode  displayMode
	paint painter
	size  func() (rows, cols int)

	mu     sync.Mutex
	stages []*stage
	drawn  int // lines of the live display that are on the terminal
	stop   chan struct{}
	idle   sync.WaitGroup
	closed bool
}

// stage is one step of one operation.
type stage struct {
	owner    string // which of several VMs; may be empty
	name     string
	began    time.Time
	elapsed  time.Duration
	last     *bangerv1.Progress
	ended    bool
	err      string
	announce *time.Timer // of a plain display
}

// newDisplay makes the display that fits the options and the terminal.
func (a *app) newDisplay() *display {
	d := &display{w: a.sys.Stderr, mode: displayPlain, paint: a.paint(a.sys.Stderr), size: func() (int, int) {
		if s := windowSize(a.sys.Stderr); s != nil {
			return int(s.GetRows()), int(s.GetCols())
		}
		return 24, defaultRow
	}}
	switch {
	case a.quiet:
		d.mode = displayNone
	case isTerminal(a.sys.Stderr) && a.env("TERM") != "dumb":
		d.mode = displayLive
	}
	return d
}

// update takes one report on behalf of an owner, a VM's name where several are at work, else empty.
func (d *display) update(owner string, p *bangerv1.Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || p == nil {
		return
	}
	s := d.find(owner, p.GetStage())
	if s == nil {
		s = d.begin(owner, p.GetStage())
	}
	s.last = p
	if p.GetEnded() {
		d.end(s, p)
	}
	if text := oneLine(p.GetWarning()); text != "" && d.mode != displayNone {
		_, _ = fmt.Fprintf(d.w, "%sbanger: warning: %s\n", d.clear(), text)
	}
}

// record adds a stage that is over and was measured elsewhere; it is only shown in the table of timings.
func (d *display) record(name string, elapsed time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stages = append(d.stages, &stage{name: name, ended: true, elapsed: elapsed})
}

// find returns the running stage of this name.
func (d *display) find(owner, name string) *stage {
	for _, s := range slices.Backward(d.stages) {
		if s.owner == owner && s.name == name && !s.ended {
			return s
		}
	}
	return nil
}

func (d *display) begin(owner, name string) *stage {
	s := &stage{owner: owner, name: name, began: time.Now()}
	d.stages = append(d.stages, s)
	switch d.mode {
	case displayPlain:
		s.announce = time.AfterFunc(quietFor, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if !s.ended && !d.closed {
				_, _ = fmt.Fprintf(d.w, "banger: %s ...\n", s.title())
			}
		})
	case displayLive:
		if d.stop == nil {
			d.stop = make(chan struct{})
			d.idle.Go(d.redraw)
		}
	case displayNone:
	}
	return s
}

func (d *display) end(s *stage, p *bangerv1.Progress) {
	s.ended, s.err = true, p.GetError()
	s.elapsed = time.Since(s.began)
	if e := p.GetElapsed(); e != nil {
		s.elapsed = e.AsDuration()
	}
	if s.announce != nil {
		s.announce.Stop()
	}
	if d.mode == displayPlain && s.elapsed >= quietFor {
		_, _ = fmt.Fprintf(d.w, "banger: %s ... %s%s\n", s.title(), duration(s.elapsed), s.failure())
	}
}

func (s *stage) title() string {
	if s.owner != "" {
		return oneLine(s.owner + ": " + s.name)
	}
	return oneLine(s.name)
}

func (s *stage) failure() string {
	if s.err == "" {
		return ""
	}
	return " failed"
}

// redraw keeps a live display alive until stop is closed.
func (d *display) redraw() {
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-d.stop:
			return
		case <-tick.C:
			d.mu.Lock()
			d.draw(n, false)
			d.mu.Unlock()
		}
	}
}

// draw replaces what is on the terminal by the present state. final leaves out what is not over.
func (d *display) draw(frame int, final bool) {
	rows, cols := d.size()
	var lines []string
	for _, s := range d.stages {
		if line, ok := d.line(s, frame, final, cols-1); ok {
			lines = append(lines, line)
		}
	}
	if over := len(lines) - max(rows-1, 1); over > 0 && !final {
		lines = lines[over:] // the cursor can't go back beyond the top
	}
	var b strings.Builder
	b.WriteString(d.clear())
	for _, line := range lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	if !final {
		d.drawn = len(lines)
	}
	if b.Len() > 0 {
		_, _ = io.WriteString(d.w, b.String())
	}
}

// clear returns what erases the lines drawn before: cursor up, to column 1, erase to the end (ECMA-48 CPL, ED).
func (d *display) clear() string {
	if d.drawn == 0 {
		return ""
	}
	n := d.drawn
	d.drawn = 0
	return fmt.Sprintf("\x1b[%dF\x1b[J", n)
}

// line is one stage in at most width columns; ok is false for one that is not worth showing.
func (d *display) line(s *stage, frame int, final bool, width int) (text string, ok bool) {
	if s.ended && s.elapsed < quietFor && s.err == "" {
		return "", false
	}
	if s.began.IsZero() || !s.ended && (final || time.Since(s.began) < firstDraw) {
		return "", false
	}
	mark, elapsed := "✓", s.elapsed
	colour := d.paint.green
	switch {
	case s.err != "":
		mark, colour = "✗", d.paint.red
	case !s.ended:
		frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
		mark, elapsed, colour = string(frames[frame%len(frames)]), time.Since(s.began), d.paint.yellow
	}
	head := s.title()
	tail := duration(elapsed)
	if !s.ended && elapsed >= time.Second {
		tail = fmt.Sprintf("%ds", int(elapsed.Seconds())) // tenths would only flicker
	}
	if !s.ended {
		if c := counted(s.last); c != "" {
			tail += "  " + c
		}
		if detail := oneLine(s.last.GetDetail()); detail != "" {
			tail += "  " + detail
		}
	}
	head = clip(head, width-2)
	tail = clip(tail, width-4-utf8.RuneCountInString(head))
	return colour(mark) + " " + head + "  " + d.paint.dim(tail), true
}

// counted writes how much of the work is done: "42%  12.0MiB of 28.5MiB", "117 packages".
func counted(p *bangerv1.Progress) string {
	current, total := p.GetCurrent(), p.GetTotal()
	if current <= 0 {
		return ""
	}
	amount := func(n int64) string { return fmt.Sprint(n) }
	unit := " " + oneLine(p.GetUnit())
	if p.GetUnit() == "bytes" || p.GetUnit() == "" {
		amount, unit = size, ""
	}
	if total <= 0 {
		return amount(current) + unit
	}
	percent := min(100, int(100*float64(current)/float64(total)))
	return fmt.Sprintf("%d%%  %s of %s%s", percent, amount(current), amount(total), unit)
}

// clip shortens a text to a number of columns.
func clip(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// erase ends the display and takes it off the terminal, to make room for a command's output. keep leaves the lines of
// finished stages there, as a record. Later calls do nothing.
func (d *display) erase() { d.close(false) }
func (d *display) keep()  { d.close(true) }

func (d *display) close(keep bool) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.closed = true
	stop := d.stop
	for _, s := range d.stages {
		if s.announce != nil {
			s.announce.Stop()
		}
	}
	d.mu.Unlock()
	if stop == nil {
		return
	}
	close(stop)
	d.idle.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if keep {
		d.draw(0, true)
	} else if c := d.clear(); c != "" {
		_, _ = io.WriteString(d.w, c)
	}
}

// timings writes a table of all stages and the total.
func (d *display) timings(w io.Writer, total time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := &table{head: []string{"STAGE", "TIME"}}
	for _, s := range d.stages {
		if s.ended {
			t.add(s.title(), duration(s.elapsed)+s.failure())
		}
	}
	t.add("total", duration(total))
	_ = t.write(w)
}
