// Command guest is the program that the conformance suite runs inside its virtual machines. As process 1 it is a
// whole /init; elsewhere it is the "guest" of package fakevmm, with the link on descriptor 3 and the console on
// descriptor 4.
//
// It speaks lines on the link, one answer per request (see the suite's guest type for the other end):
//
//	echo TEXT           TEXT
//	count               ticks of a millisecond counter since the start; it stands still while the vCPUs do
//	cmdline             the kernel command line
//	say TEXT            writes TEXT to the console; "ok"
//	hear                the next line of the console's input
//	send N              N bytes, all 'x', and a newline
//	read SERIAL         the first line of the disk of that serial number
//	write SERIAL TEXT   makes TEXT the first line of that disk and syncs it; "ok"
//	size SERIAL         the size of that disk in bytes
//	memory              the size of the memory in bytes, less what the kernel needs for itself
//	frame               sends an Ethernet frame to everybody, with the text "frame" (see frame); "ok"
//	shutdown, reboot, panic   ends the machine; no answer
//
// An answer that begins with "error: " tells a failure.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// platform is what differs between a virtual machine and a plain process.
type platform interface {
	cmdline() (string, error)
	disk(serial string) (path string, err error)
	size(serial string) (bytes string, err error)
	memory() (bytes string, err error)
	send(frame func(mac net.HardwareAddr) []byte) error
	end(how string) error // "shutdown", "reboot" or "panic"
}

// frame returns an Ethernet frame of the type for local experiments (IEEE 802, 0x88b5) that comes from an address.
func frame(mac net.HardwareAddr) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	f = append(f, 0x88, 0xb5)
	f = append(f, "frame"...)
	return append(f, make([]byte, 60-len(f))...)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run() error {
	if os.Getpid() != 1 {
		link, console := os.NewFile(3, "link"), os.NewFile(4, "console")
		return serve(link, console, process{})
	}
	m := machine{}
	link, console, err := m.setUp()
	if err == nil {
		err = serve(link, console, m)
	}
	fmt.Println("guest: failed:", err)
	return m.end("panic")
}

// serve answers the lines of the link until the link ends.
func serve(link, console io.ReadWriter, p platform) error {
	var ticks atomic.Int64
	// A process goes on counting where the guest stood that it was restored from; a machine's memory knows.
	if before, err := strconv.ParseInt(os.Getenv("FAKEVMM_RAN_MS"), 10, 64); err == nil {
		ticks.Store(before)
	}
	go func() {
		for range time.Tick(time.Millisecond) {
			ticks.Add(1)
		}
	}()
	typed := bufio.NewReader(console)
	lines := bufio.NewScanner(link)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		var answer string
		var err error
		switch verb {
		case "echo":
			answer = rest
		case "count":
			answer = strconv.FormatInt(ticks.Load(), 10)
		case "cmdline":
			answer, err = p.cmdline()
		case "say":
			answer = "ok"
			_, err = fmt.Fprintln(console, rest)
		case "hear":
			answer, err = typed.ReadString('\n')
		case "send":
			var n int
			n, err = strconv.Atoi(rest)
			answer = strings.Repeat("x", max(n, 0))
		case "read", "write":
			answer, err = accessDisk(p, verb, rest)
		case "size":
			answer, err = p.size(rest)
		case "memory":
			answer, err = p.memory()
		case "frame":
			answer, err = "ok", p.send(frame)
		case "shutdown", "reboot", "panic":
			err = p.end(verb)
		default:
			err = fmt.Errorf("unknown verb %q", verb)
		}
		if err != nil {
			answer = "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := fmt.Fprintln(link, strings.TrimRight(answer, "\r\n")); err != nil {
			return fmt.Errorf("answer on the link: %w", err)
		}
	}
	return lines.Err()
}

func accessDisk(p platform, verb, rest string) (string, error) {
	serial, text, _ := strings.Cut(rest, " ")
	path, err := p.disk(serial)
	if err != nil {
		return "", err
	}
	mode := os.O_RDONLY
	if verb == "write" {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // synced below where it matters
	if verb == "read" {
		return bufio.NewReader(io.LimitReader(f, 512)).ReadString('\n')
	}
	if _, err := f.WriteAt([]byte(text+"\n"), 0); err != nil {
		return "", err
	}
	return "ok", f.Sync()
}

// process is the platform of a plain process (package fakevmm).
type process struct{}

func (process) cmdline() (string, error) { return os.Getenv("FAKEVMM_CMDLINE"), nil }

func (process) disk(serial string) (string, error) {
	path, ok := os.LookupEnv("FAKEVMM_DISK_" + serial)
	if !ok {
		return "", fmt.Errorf("no disk %q", serial)
	}
	return path, nil
}

func (p process) size(serial string) (string, error) {
	path, err := p.disk(serial)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(info.Size(), 10), nil
}

func (process) memory() (string, error) {
	text, err := os.ReadFile(os.Getenv("FAKEVMM_MEMORY"))
	return string(text), err
}

func (process) send(frame func(net.HardwareAddr) []byte) error {
	mac, err := net.ParseMAC(os.Getenv("FAKEVMM_MAC"))
	if err != nil {
		return err
	}
	f := frame(mac)
	_, err = os.NewFile(5, "network").Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)) // 60
	return err
}

func (process) end(how string) error {
	os.Exit(map[string]int{"shutdown": 0, "reboot": 75, "panic": 75}[how])
	return nil
}
