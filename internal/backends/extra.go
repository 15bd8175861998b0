//go:build !fakevmm

package backends

// extra is what a test build has beyond the real backends: nothing here.
func extra() []Backend { return nil }
