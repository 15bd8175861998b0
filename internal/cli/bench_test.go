package cli

import (
	"errors"
	"testing"
)

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tt := range []struct {
		sorted []float64
		p      int
		want   float64
	}{
		{[]float64{7}, 50, 7},
		{[]float64{7}, 99, 7},
		{[]float64{1, 2, 3}, 50, 2},
		{[]float64{1, 2, 3, 4}, 50, 2},
		{[]float64{1, 2, 3}, 99, 3},
		{hundred, 50, 50},
		{hundred, 90, 90},
		{hundred, 99, 99},
	} {
		if got := percentile(tt.sorted, tt.p); got != tt.want {
			t.Errorf("the %dth percentile of %d samples is %g, want %g", tt.p, len(tt.sorted), got, tt.want)
		}
	}
}

func TestPSS(t *testing.T) {
	t.Parallel()
	if got, err := pssOf("00400000-7fff r--p 00000000 00:00 0 [rollup]\nRss:    18848 kB\nPss:      9120 kB\nPss_Dirty:  4000 kB\n"); got != 9120*1024 || err != nil {
		t.Errorf("%g, %v", got, err)
	}
	if _, err := pssOf("Rss: 1 kB\n"); err == nil {
		t.Error("no error without the line")
	}
}

func TestBenchChoice(t *testing.T) {
	t.Parallel()
	f := &benchFlags{runs: 1, only: []string{"list", "exec"}}
	got, err := f.chosen()
	if err != nil || len(got) != 2 || got[0].name != "exec" || got[1].name != "list" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []*benchFlags{{runs: 0}, {runs: 1, only: []string{"nosuch"}}, {runs: 1 << 30}} {
		if _, err := bad.chosen(); !isUsage(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func isUsage(err error) bool {
	_, is := errors.AsType[*usageError](err)
	return is
}
