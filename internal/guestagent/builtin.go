package guestagent

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pkg/sftp"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

// self is the agent's own program, which runs the programs that every guest has. It need not have a name any more.
const self = "/proc/self/exe"

// resolveBuiltin finds the program of a command whose first word may be one of guestproto's names. It reports false if it is none.
func (c *command) resolveBuiltin(u user) (bool, error) {
	switch name := c.argv[0]; name {
	case guestproto.ProgramShell:
		path, err := findShell(u)
		c.path, c.argv[0] = path, "sh"
		if err == nil {
			c.argv[0] = path[strings.LastIndexByte(path, '/')+1:]
		}
		return true, err
	case guestproto.ProgramSFTP, guestproto.ProgramSCP:
		c.path = self
		return true, nil
	default:
		if strings.HasPrefix(name, "@") && !strings.Contains(name, "/") {
			return false, fault.New(fault.NotFound, "%s: the agent has no program of this name; one of the image is reached by its path", clip(name, 80))
		}
		return false, nil
	}
}

// builtinMain is the agent's program as one of these. It reports false if args name none.
func builtinMain(args []string) (status int, is bool) {
	switch args[0] {
	case guestproto.ProgramSFTP:
		return sftpMain(stdio{os.Stdin, os.Stdout}, os.Stderr), true
	case guestproto.ProgramSCP:
		return scpMain(args[1:], os.Stdin, os.Stdout, os.Stderr), true
	default:
		return 0, false
	}
}

// sftpMain serves SFTP (draft-ietf-secsh-filexfer-02 and OpenSSH's extensions) with the rights, and from the working directory, of
// its process.
func sftpMain(conn io.ReadWriteCloser, stderr io.Writer) int {
	server, err := sftp.NewServer(conn)
	if err == nil {
		err = server.Serve()
		_ = server.Close()
	}
	if err != nil && err != io.EOF { //nolint:errorlint // as the package returns it
		_, _ = fmt.Fprintln(stderr, "sftp-server:", err)
		return 1
	}
	return 0
}

// stdio is standard input and output as one.
type stdio struct {
	io.Reader
	io.WriteCloser
}
