package qemu

import (
	"context"
	"errors"
	"math/bits"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// tscWindow is how long the counter is measured. A reading is off by less than 0.2 µs: 10 ppm of the window.
const tscWindow = 20 * time.Millisecond

// measureTSC returns the rate of this host's time stamp counter in kHz, measured against CLOCK_MONOTONIC_RAW. The rate
// in /proc/cpuinfo is that of the core, which on many hosts changes or is another one.
func measureTSC(ctx context.Context) (int, error) {
	tsc0, ns0, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	timer := time.NewTimer(tscWindow)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	tsc1, ns1, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	if tsc1 <= tsc0 || ns1 <= ns0 {
		return 0, errors.New("the time stamp counter or the clock went backwards")
	}
	// ticks per ns, times 10^6
	hi, lo := bits.Mul64(tsc1-tsc0, 1_000_000)
	khz, _ := bits.Div64(hi%(ns1-ns0), lo, ns1-ns0)
	if khz < 100_000 || khz > 20_000_000 {
		return 0, errors.New("the time stamp counter has no sensible rate")
	}
	return int(khz), nil // bounded above
}

// sampleTSC reads the counter and the clock (ns) at the same moment, as near as can be: of several tries it takes the one
// that was interrupted least.
func sampleTSC() (tsc, ns uint64, err error) {
	best := ^uint64(0)
	for range 16 {
		var t unix.Timespec
		before := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &t); err != nil {
			return 0, 0, err
		}
		after := rdtsc()
		if took := after - before; took < best {
			best, tsc, ns = took, before+took/2, uint64(t.Nano()) // since boot: not negative
		}
	}
	return tsc, ns, nil
}
