// Command banger is the command line, the daemon and the monitor of VMs.
package main

import (
	"context"
	"os"

	"banger/internal/cli"
	"banger/internal/daemon"
	"banger/internal/monitor"
)

func main() {
	sys, stop := cli.OS()
	status := cli.Main(context.Background(), os.Args[1:], cli.Roots{Daemon: daemon.Main, Monitor: monitor.Main}, sys)
	stop()
	os.Exit(status)
}
