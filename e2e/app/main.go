// Command app is the one program of the images that the scenarios make: it says who and where it is, and can serve until
// it is told to stop.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	dir, _ := os.Getwd()
	fmt.Println("args", strings.Join(os.Args[1:], " "))
	fmt.Println("ids", os.Getuid(), os.Getgid())
	fmt.Println("dir", dir)
	fmt.Println("env", os.Getenv("COLOUR"), os.Getenv("SHAPE"))
	for _, path := range []string{
		"/dev/null", "/proc/self", "/sys/kernel", "/tmp", "/root", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname",
	} {
		if _, err := os.Stat(path); err != nil {
			fmt.Println("missing:", err)
		}
	}
	if f, err := os.OpenFile("/dev/stdout", os.O_WRONLY, 0); err != nil { // as servers do that log there
		fmt.Println("closed:", err)
	} else {
		_ = f.Close()
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
		fmt.Println("serving")
		fmt.Println("stopped by", <-stop)
	}
}
