// Package progress is the vocabulary for saying how far long work has come. The code that works calls a [Sink]; whoever
// asked for the work decides where the updates go. It owns no state and does no I/O.
package progress

import "time"

// Update is one report: a stage began, moved on, or ended.
type Update struct {
	Stage   string        // short and stable, a few words: "build image debian-bookworm"
	Detail  string        // what is being done right now; may be empty
	Current int64         // units done so far; 0 if not counted
	Total   int64         // units in all; 0 if not known
	Unit    string        // "bytes", "packages", ...; empty if not counted
	Ended   bool          // the stage is over
	Elapsed time.Duration // with Ended: how long the stage took
	Err     string        // with Ended: why it failed; empty if it succeeded
	Warning string        // what people should know although the work goes on; usually empty
}

// Sink receives updates. It must not block for long and may be called from any goroutine. A nil Sink is legal: use
// [Sink.Send].
type Sink func(Update)

// Send passes the update on, if anybody listens.
func (s Sink) Send(u Update) {
	if s != nil {
		s(u)
	}
}

// Stage reports the beginning of a stage and returns a function that reports its end; give it the stage's error.
func (s Sink) Stage(name string) (end func(error)) {
	began := time.Now()
	s.Send(Update{Stage: name})
	return func(err error) {
		u := Update{Stage: name, Ended: true, Elapsed: time.Since(began)}
		if err != nil {
			u.Err = err.Error()
		}
		s.Send(u)
	}
}
