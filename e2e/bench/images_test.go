package main

import (
	"testing"
	"time"
)

func TestFindImage(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		timings string
		want    time.Duration
		fails   bool
	}{
		{timings: "STAGE       TIME\nfind image  0.3ms\ntotal       3.4s\n", want: 300 * time.Microsecond},
		{timings: "STAGE        TIME\nfind kernel  9ms\nfind image   12ms\n", want: 12 * time.Millisecond},
		{timings: "STAGE       TIME\nfind image  0.1ms (failed)\n", fails: true},
		{timings: "find imagery  1ms\n", fails: true},
		{timings: "", fails: true},
	} {
		got, err := findImage(tc.timings)
		if got != tc.want || (err != nil) != tc.fails {
			t.Errorf("findImage(%q) = %v, %v", tc.timings, got, err)
		}
	}
}
