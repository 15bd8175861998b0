package progress_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/progress"
)

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	var s progress.Sink
	s.Send(progress.Update{Stage: "a"})
	s.Stage("b")(errors.New("x"))
}

func TestStage(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"success": nil, "failure": errors.New("no room")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var got []progress.Update
				s := progress.Sink(func(u progress.Update) { got = append(got, u) })
				end := s.Stage("build")
				time.Sleep(3 * time.Second)
				end(err)
				want := []progress.Update{{Stage: "build"}, {Stage: "build", Ended: true, Elapsed: 3 * time.Second}}
				if err != nil {
					want[1].Err = "no room"
				}
				if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
					t.Errorf("updates: %+v, want %+v", got, want)
				}
			})
		})
	}
}
