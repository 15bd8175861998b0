package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// counts is how tests ended.
type counts struct{ passed, failed, skipped int }

func (c counts) plus(d counts) counts {
	return counts{c.passed + d.passed, c.failed + d.failed, c.skipped + d.skipped}
}

// String is the form that the last line of a run has.
func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

// event is a line of go test -json, see go doc test2json and go help buildjson.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

// pkg is what is known of one package's tests.
type pkg struct {
	output map[string]*strings.Builder // by test; of the package itself under ""
	ended  map[string]string           // by test: pass, fail or skip
	order  []string                    // tests in the order they began
}

// summary reads the output of go test -json, tells what matters and counts.
type summary struct {
	to     io.Writer
	pkgs   map[string]*pkg
	builds map[string]*strings.Builder // compiler's messages by import path
	total  counts
}

func newSummary(to io.Writer) *summary {
	return &summary{to: to, pkgs: map[string]*pkg{}, builds: map[string]*strings.Builder{}}
}

func (s *summary) read(r io.Reader) counts {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) != nil:
			fmt.Fprintf(s.to, "%s", line) // not an event: show it
		default:
			s.add(e)
		}
		if err != nil {
			break
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.pkgs)) { // the tool itself was stopped
		s.end(event{Package: name, Action: "fail"})
	}
	return s.total
}

func (s *summary) add(e event) {
	if e.Action == "build-output" {
		text(s.builds, e.ImportPath).WriteString(e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	p := s.pkgs[e.Package]
	if p == nil {
		p = &pkg{output: map[string]*strings.Builder{}, ended: map[string]string{}}
		s.pkgs[e.Package] = p
	}
	switch e.Action {
	case "run":
		p.order = append(p.order, e.Test)
	case "output":
		text(p.output, e.Test).WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.end(e)
		} else {
			p.ended[e.Test] = e.Action
		}
	}
}

// end tells how a package did and forgets it.
func (s *summary) end(e event) {
	p := s.pkgs[e.Package]
	delete(s.pkgs, e.Package)
	var got counts
	for _, test := range p.order {
		switch result := p.ended[test]; {
		case result == "pass" && !p.isParent(test):
			got.passed++
		case result == "skip":
			got.skipped++
			fmt.Fprintf(s.to, "SKIP %s %s: %s\n", e.Package, test, reason(text(p.output, test).String()))
		case result == "fail" && !p.childFailed(test), result == "": // without a result: it was running when the process died
			got.failed++
		}
	}
	if e.Action == "fail" {
		if got.failed == 0 {
			got.failed = 1 // it did not build, or died outside its tests
		}
		s.show(e, p)
	} else if len(p.order) > 0 {
		fmt.Fprintf(s.to, "ok   %s: %s (%.1f s)\n", e.Package, got, e.Elapsed)
	}
	s.total = s.total.plus(got)
}

// show prints everything that belongs to a failure.
func (s *summary) show(e event, p *pkg) {
	fmt.Fprintf(s.to, "FAIL %s\n", e.Package)
	if b := s.builds[e.FailedBuild]; b != nil {
		fmt.Fprint(s.to, b)
	}
	for _, test := range p.order {
		if r := p.ended[test]; r == "fail" || r == "" {
			fmt.Fprint(s.to, text(p.output, test))
		}
	}
	fmt.Fprint(s.to, text(p.output, ""))
}

func (p *pkg) isParent(test string) bool {
	return slices.ContainsFunc(p.order, func(t string) bool { return strings.HasPrefix(t, test+"/") })
}

func (p *pkg) childFailed(test string) bool {
	return slices.ContainsFunc(p.order, func(t string) bool {
		return strings.HasPrefix(t, test+"/") && (p.ended[t] == "fail" || p.ended[t] == "")
	})
}

// reason finds what a test that skips itself said.
func reason(output string) string {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if _, said, ok := strings.Cut(line, ".go:"); ok { // file.go:12: what it said
			if _, said, ok = strings.Cut(said, ": "); ok {
				return said
			}
		}
		return line
	}
	return "no reason given"
}

func text(in map[string]*strings.Builder, key string) *strings.Builder {
	if in[key] == nil {
		in[key] = &strings.Builder{}
	}
	return in[key]
}
