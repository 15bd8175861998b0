package microvm

import (
	"path"
	"slices"
)

// ImageConfig is what an image says about how programs run in it (OCI image configuration). A VM keeps what its image
// said when the VM was created.
type ImageConfig struct {
	Entrypoint []string `json:",omitempty"`
	Cmd        []string `json:",omitempty"`
	Env        []string `json:",omitempty"` // KEY=VALUE
	Dir        string   `json:",omitempty"` // made if it is missing
	User       string   `json:",omitempty"` // name, uid, name:group or uid:gid; empty: root
	StopSignal string   `json:",omitempty"` // "SIGQUIT", "QUIT", "3"; empty: SIGTERM
	Ports      []string `json:",omitempty"` // that it says it listens on: "80/tcp"
}

// Process is a command of a VM. What is empty is as the image says.
type Process struct {
	Args []string `json:",omitempty"`
	Dir  string   `json:",omitempty"`
	User string   `json:",omitempty"`
}

// Program returns what the image runs if nobody says otherwise: its entrypoint followed by its command; nil if there is
// none. An init is none: a VM has booted it when a command can run.
func (c ImageConfig) Program() []string {
	args := slices.Concat(c.Entrypoint, c.Cmd)
	if len(args) == 0 || len(args) == 1 && slices.Contains([]string{"init", "systemd"}, path.Base(args[0])) {
		return nil
	}
	return args
}

// Service returns the image's program if it can be a VM's main process, to which nobody is attached; else nil. A shell
// without input would end at once, and the VM with it.
func (c ImageConfig) Service() []string {
	args := c.Program()
	shells := []string{"sh", "bash", "dash", "ash", "zsh", "fish", "busybox"}
	if len(args) == 1 && slices.Contains(shells, path.Base(args[0])) {
		return nil
	}
	return args
}
