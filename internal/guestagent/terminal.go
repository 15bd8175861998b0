package guestagent

import (
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/guestproto"
)

// openTerminal opens a pseudoterminal (pty(7)) for a command.
func openTerminal(cmd *command, size guestproto.WindowSize) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open /dev/ptmx", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	defer func() {
		if err != nil {
			_ = master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, os.NewSyscallError("unlock the terminal", err)
	}
	// TIOCGPTPEER needs no path to the slave side, and so no /dev/pts that is where the image wants it.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, os.NewSyscallError("open the terminal", errno)
	}
	slave = os.NewFile(peer, "tty")
	if cmd.cred != nil {
		_ = slave.Chown(int(cmd.cred.Uid), -1)
	}
	if size.Rows == 0 || size.Cols == 0 {
		size = guestproto.WindowSize{Rows: 24, Cols: 80}
	}
	return master, slave, setSize(master, size)
}

// setSize sets the size of a terminal; the kernel sends SIGWINCH if it changed.
func setSize(master *os.File, size guestproto.WindowSize) error {
	return control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// endOfFile is what a user would type to end the input: nothing if the program reads single keys.
func endOfFile(master *os.File) []byte {
	var char []byte
	_ = control(master, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && t.Lflag&unix.ICANON != 0 {
			char = []byte{t.Cc[unix.VEOF]}
		}
		return err
	})
	return char
}

// control runs f on the descriptor without taking it out of Go's poller, as File.Fd would.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
