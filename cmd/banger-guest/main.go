// Command banger-guest is what runs inside a banger microVM: the init of its initramfs, and the agent that serves the host.
package main

import (
	"os"

	"banger/internal/guestagent"
)

func main() { os.Exit(guestagent.Main(os.Args)) }
