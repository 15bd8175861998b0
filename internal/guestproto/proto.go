// Package guestproto is the wire format of the link between the host and the agent in a guest, shared by both ends: the
// preamble that opens a session, the frames inside a stream, the requests, and the words on the kernel command line that
// tell the guest how to boot. It owns encoding and the limits that both ends enforce; it does no I/O of its own beyond the
// readers and writers it is given, and it imports nothing heavy, because it ends up in the guest's binary.
//
// Layers, from the bottom up:
//
//	byte stream   virtio-serial port PortName, or vsock
//	preamble      one per session: Preamble from the host, then the answer (Hello) from the guest
//	yamux         the host opens a stream per request; MuxConn checks and joins its frames
//	frames        WriteFrame, Reader: one FrameRequest, then what the request calls for
package guestproto

import (
	"encoding/json"
	"fmt"
)

// Version is the version of this protocol. Both ends refuse any other.
const Version = 1

// PortName is the name of the virtio-serial port of the link, as in /sys/class/virtio-ports/*/name.
const PortName = "banger.link"

// Serials of the disks, as in /sys/block/*/serial.
const (
	DiskBase    = "base"    // read-only root image, ext4
	DiskSystem  = "system"  // ext4: upper and work directories of the root's overlay, and directories that may not lie on one
	DiskWork    = "work"    // ext4, mounted at /root
	DiskModules = "modules" // read-only ext4 whose root is the content of /lib/modules/<release>; optional
)

// Files of the initramfs that the guest's init reads.
const (
	ModulesList = "/banger/modules.list" // paths of kernel modules, one a line, in the order to load them
)

// Limits, in bytes.
const (
	MaxRequest = 1 << 20  // payload of a request frame
	MaxPayload = 32 << 10 // payload of any other frame
	MaxHello   = 16 << 10 // JSON of a Hello
	// StdinWindow is how much of a command's standard input may be under way unconsumed. The guest holds that much in
	// memory, so that it always reads the stream and sees signals and the end of it, even if the command reads nothing.
	StdinWindow = 256 << 10
)

// Hello is the agent's answer to a preamble. It means: the root file system is mounted and commands can run.
type Hello struct {
	Agent    string `json:"agent"`     // version of the agent
	Protocol int    `json:"protocol"`  // Version
	BootID   string `json:"boot_id"`   // /proc/sys/kernel/random/boot_id
	Kernel   string `json:"kernel"`    // release, as of uname(2)
	UptimeNS int64  `json:"uptime_ns"` // CLOCK_BOOTTIME
	Pid      int    `json:"pid"`       // of the agent
	Init     string `json:"init"`      // InitAgent, InitSystemd or "hosted"
}

// Op names a request.
type Op string

// The requests. Each has its arguments and the frames that follow.
const (
	OpPing      Op = "ping"      // no arguments; FrameDone
	OpExec      Op = "exec"      // ExecSpec; FrameStarted, then both ways until FrameExit
	OpMain      Op = "main"      // MainSpec; FrameDone once it runs
	OpPut       Op = "put"       // PutSpec; host: FrameData..., FrameEOF; guest: FrameDone
	OpGet       Op = "get"       // GetSpec; guest: FrameData..., FrameDone
	OpSync      Op = "sync"      // no arguments; FrameDone
	OpShutdown  Op = "shutdown"  // ShutdownSpec; FrameDone, then the guest goes down
	OpConfigure Op = "configure" // Identity; FrameDone
	OpGrow      Op = "grow"      // GrowSpec; FrameDone when the file system has the size
	OpDial      Op = "dial"      // DialSpec; FrameDone, then FrameData and FrameEOF both ways
	OpListen    Op = "listen"    // ListenSpec; FrameAnswer with Listening, then one with Accepted for each connection
	OpStats     Op = "stats"     // no arguments; FrameAnswer with Stats
	OpPorts     Op = "ports"     // PortsSpec; FrameAnswer with Ports, then, if watched, one after each change
)

// Request is the payload of the first frame of a stream.
type Request struct {
	Op   Op              `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// ExecSpec says what to run.
type ExecSpec struct {
	Args    []string `json:"args,omitempty"`     // empty: the user's shell as a login shell; first may be a Program
	Env     []string `json:"env,omitempty"`      // NAME=value, on top of the base environment
	Dir     string   `json:"dir,omitempty"`      // empty or HomeDir: the user's home
	MakeDir bool     `json:"make_dir,omitempty"` // make Dir, for root, if it is missing
	User    string   `json:"user,omitempty"`     // "", name, uid, name:group, uid:gid; empty: root
	TTY     bool     `json:"tty,omitempty"`      // run on a terminal of its own; stdout and stderr are then one
	Rows    uint16   `json:"rows,omitempty"`     // of the terminal; 0: 24
	Cols    uint16   `json:"cols,omitempty"`     // of the terminal; 0: 80
	Term    string   `json:"term,omitempty"`     // TERM; empty: xterm
	Stdin   bool     `json:"stdin,omitempty"`
}

// HomeDir as a command's directory is the user's home, also where another would be chosen for a command without one.
const HomeDir = "~"

// Names of programs that every guest has, as the first word of a command. A program of the image whose name begins so is reached
// by its path.
const (
	ProgramShell = "@shell"       // the user's shell, with the arguments that follow
	ProgramSFTP  = "@sftp-server" // serves SFTP on standard input and output
	ProgramSCP   = "@scp"         // the far end of scp, with its arguments
)

// MainSpec says what the main process of the VM is: it belongs to no stream, its output goes to the console, and when it
// ends the guest goes down. There is one: a guest that has it already answers FrameDone.
type MainSpec struct {
	Exec       ExecSpec `json:"exec"`        // its terminal and standard input are left aside: there is neither
	StopSignal int      `json:"stop_signal"` // what it gets, first and alone, when the guest is to go down
}

// Started is the payload of FrameStarted.
type Started struct {
	Pid int `json:"pid"`
}

// EventKind says what an ExecEvent reports.
type EventKind int

// The kinds of events.
const (
	EventStdout EventKind = iota + 1
	EventStderr
	EventExit
)

// ExecEvent is one thing a command did.
type ExecEvent struct {
	Kind EventKind
	Data []byte     // of EventStdout and EventStderr; valid until the next event is received
	Exit ExitStatus // of EventExit
}

// ExitStatus says how a command ended.
type ExitStatus struct {
	Code   int `json:"code"`             // exit status, 0-255; 128+Signal if a signal ended it
	Signal int `json:"signal,omitempty"` // number of the signal, 0 if none
}

// Check refuses what no process can end with.
func (e ExitStatus) Check() error {
	if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > maxSignal {
		return fmt.Errorf("impossible exit status %d, signal %d", e.Code, e.Signal)
	}
	return nil
}

// maxSignal is the highest signal number of Linux (SIGRTMAX).
const maxSignal = 64

// CheckSignal refuses a number that is no signal.
func CheckSignal(n int) error {
	if n < 1 || n > maxSignal {
		return fmt.Errorf("no such signal: %d", n)
	}
	return nil
}

// WindowSize is the payload of FrameResize.
type WindowSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// PutSpec says where a tar stream is unpacked.
type PutSpec struct {
	Dir       string `json:"dir"`                  // absolute; made if it is missing; nothing is written outside of it
	KeepOwner bool   `json:"keep_owner,omitempty"` // take user and group ids from the archive, else UID and GID
	UID       int    `json:"uid,omitempty"`
	GID       int    `json:"gid,omitempty"`
	Home      bool   `json:"home,omitempty"` // in the home directory that the work disk is, and Dir is left aside
	Keep      bool   `json:"keep,omitempty"` // leave files alone that are there already
	// Copy makes Dir a destination as a user writes it, relative to the home of User, who owns what comes unless KeepOwner.
	Copy Copy   `json:"copy,omitempty"`
	User string `json:"user,omitempty"` // as in ExecSpec
}

// Copy is a way to find out where an archive goes.
type Copy string

// The ways.
const (
	CopyPlace Copy = "place" // an archive of one file or directory gets the name, and the place, that docker cp would give it
	CopyInto  Copy = "into"  // any archive goes into the directory, which must be there
)

// GetSpec says what to pack.
type GetSpec struct {
	Path   string `json:"path"`             // absolute, or with Name relative to the home of User
	Name   string `json:"name,omitempty"`   // of the first entry, with which all others begin; ".": none; empty: the last element of Path
	User   string `json:"user,omitempty"`   // as in ExecSpec
	Follow bool   `json:"follow,omitempty"` // if Path is a symbolic link, pack what it points to
}

// Shutdown is a way to go down.
type Shutdown string

// The ways to go down.
const (
	PowerOff Shutdown = "poweroff"
	Reboot   Shutdown = "reboot"
)

// ShutdownSpec asks the guest to go down.
type ShutdownSpec struct {
	How     Shutdown `json:"how"`
	GraceMS int      `json:"grace_ms,omitempty"` // between SIGTERM and SIGKILL, agent as init only; 0: 5 s
	MainMS  int      `json:"main_ms,omitempty"`  // before that, for the main process alone to end; 0: 5 s
}

// Identity is what makes a guest this guest and not the one it was copied from. Zero fields are left as they are. One with
// a BootID says that the guest is a copy: then what else must not be shared goes too (the seed of the random numbers on
// the disk, the host keys of sshd, of which new ones are made if the guest can).
type Identity struct {
	Hostname  string   `json:"hostname,omitempty"`
	MachineID string   `json:"machine_id,omitempty"` // 32 hexadecimal digits, machine-id(5)
	TimeNS    int64    `json:"time_ns,omitempty"`    // wall clock, ns since 1970
	Entropy   []byte   `json:"entropy,omitempty"`    // credited to the kernel's generator; at most 512 bytes
	Env       []string `json:"env,omitempty"`        // NAME=value, for every later command
	BootID    string   `json:"boot_id,omitempty"`    // a UUID: what /proc/sys/kernel/random/boot_id says from now on
}

// GrowSpec says which disk's file system is to fill the disk.
type GrowSpec struct {
	Serial string `json:"serial"` // DiskSystem or DiskWork
	Size   int64  `json:"size"`   // bytes that the disk has by now; the guest waits until it sees them
}

// DialSpec says what to connect to from inside the guest.
type DialSpec struct {
	Network string `json:"network"` // tcp, tcp4, tcp6, unix; udp: then each FrameData is one datagram of at most MaxData bytes
	Addr    string `json:"addr"`
}

// NetworkAccepted in a DialSpec takes a connection that a listener has accepted; the address is its number.
const NetworkAccepted = "accepted"

// ListenSpec says where to listen inside the guest, for as long as the stream lasts.
type ListenSpec struct {
	Network string `json:"network"`        // tcp, tcp4, tcp6, unix
	Addr    string `json:"addr,omitempty"` // of unix: absolute, or empty for a new one that only the user can reach
	User    string `json:"user,omitempty"` // who owns the socket of unix, as in ExecSpec
}

// Listening says that the listener is there.
type Listening struct {
	Addr string `json:"addr"`
}

// Accepted is a connection that waits to be taken. If many do, more are closed.
type Accepted struct {
	Number uint64 `json:"number"`
	From   string `json:"from"`
}

// Error is the payload of FrameError. Kind is the name of a fault kind.
type Error struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}
