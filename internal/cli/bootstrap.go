package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tailscale/hujson"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/microvm"
	"banger/internal/rpcclient"
)

const bootstrapUsage = "install the tools that the repository names (mise, asdf, nix, devbox, devcontainer) in the background, by what the image has for that"

// bootstrapLog is where the tools' installation tells of itself, in the home of the guest's root.
const bootstrapLog = ".cache/banger/bootstrap.log"

// bootstrap is what a repository names to set up a machine for it.
type bootstrap struct {
	file    string   // in the repository
	program string   // that the image must have
	command []string // each a line for a shell
}

// bootstraps finds what the repository around a directory names; with plain set, what that directory does.
func bootstraps(dir string, plain bool) ([]bootstrap, error) {
	if !plain {
		dir = repositoryOf(dir)
	}
	var found []bootstrap
	for _, b := range []bootstrap{
		{"mise.toml", "mise", []string{"mise trust -y", "mise install -y"}},
		{".mise.toml", "mise", []string{"mise trust -y", "mise install -y"}},
		{".tool-versions", "asdf", []string{"asdf install"}},
		{"flake.nix", "nix", []string{"nix --extra-experimental-features 'nix-command flakes' develop --command true"}},
		{"shell.nix", "nix-shell", []string{"nix-shell --run true"}},
		{"devbox.json", "devbox", []string{"devbox install"}},
	} {
		info, err := os.Stat(filepath.Join(dir, b.file))
		same := func(o bootstrap) bool { return o.program == b.program || b.program == "asdf" && o.program == "mise" } // mise reads asdf's file, too
		if err == nil && info.Mode().IsRegular() && !slices.ContainsFunc(found, same) {
			found = append(found, b)
		}
	}
	for _, name := range []string{".devcontainer/devcontainer.json", ".devcontainer.json"} {
		text, err := readStart(filepath.Join(dir, name))
		if err != nil {
			continue // mostly because there is none
		}
		commands, err := devcontainerCommands(text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "read %s: %w", name, err)
		}
		if len(commands) > 0 {
			found = append(found, bootstrap{name, "sh", commands})
		}
		break
	}
	return found, nil
}

// repositoryOf returns the top of the working tree around a directory, or the directory.
func repositoryOf(dir string) string {
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(filepath.Join(at, ".git")); err == nil {
			return at
		}
		if at == filepath.Dir(at) {
			return dir
		}
	}
}

// maxDevcontainer bounds the file that is read, in bytes.
const maxDevcontainer = 1 << 20

func readStart(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	return io.ReadAll(io.LimitReader(f, maxDevcontainer))
}

// devcontainerCommands returns the commands that a devcontainer.json has for a container that was made, in their order
// (https://containers.dev/implementors/json_reference, "Lifecycle scripts"). The file is JSON with comments.
func devcontainerCommands(text []byte) ([]string, error) {
	plain, err := hujson.Standardize(text)
	if err != nil {
		return nil, err
	}
	var file struct {
		OnCreate      json.RawMessage `json:"onCreateCommand"`
		UpdateContent json.RawMessage `json:"updateContentCommand"`
		PostCreate    json.RawMessage `json:"postCreateCommand"`
	}
	if err := json.Unmarshal(plain, &file); err != nil {
		return nil, err
	}
	var commands []string
	for _, raw := range []json.RawMessage{file.OnCreate, file.UpdateContent, file.PostCreate} {
		c, err := lifecycleCommands(raw, true)
		if err != nil {
			return nil, err
		}
		commands = append(commands, c...)
	}
	return commands, nil
}

// lifecycleCommands reads a line for a shell, a list of words, or an object of several of them, which we run in the order of their names.
func lifecycleCommands(raw json.RawMessage, object bool) ([]string, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	var line string
	if json.Unmarshal(raw, &line) == nil {
		if line = strings.TrimSpace(line); line == "" {
			return nil, nil
		}
		return []string{line}, nil
	}
	var words []string
	if json.Unmarshal(raw, &words) == nil {
		for i, w := range words {
			words[i] = singleQuoted(w)
		}
		return []string{strings.Join(words, " ")}, nil
	}
	var several map[string]json.RawMessage
	if err := json.Unmarshal(raw, &several); err != nil || !object {
		return nil, fault.New(fault.Invalid, "a command is neither text nor a list of words: %.80s", raw)
	}
	var commands []string
	for _, name := range sortedNames(several) {
		c, err := lifecycleCommands(several[name], false)
		if err != nil {
			return nil, err
		}
		commands = append(commands, c...)
	}
	return commands, nil
}

func sortedNames(m map[string]json.RawMessage) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func singleQuoted(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// bootstrapScript is what a shell in the guest runs to begin all of it: it returns at once.
func bootstrapScript(all []bootstrap) string {
	var b strings.Builder
	for _, one := range all {
		for _, command := range one.command {
			fmt.Fprintf(&b, "echo %s\n", singleQuoted("== "+one.file+": "+command))
			fmt.Fprintf(&b, "if command -v %s >/dev/null 2>&1; then sh -c %s; echo \"== status $?\"\n", one.program, singleQuoted(command))
			fmt.Fprintf(&b, "else echo %s; fi\n", singleQuoted("== skipped: this image has no "+one.program))
		}
	}
	b.WriteString("echo '== all done'\n")
	return `log="$HOME/` + bootstrapLog + `"; mkdir -p "${log%/*}" && sh -c ` + singleQuoted(b.String()) + ` >"$log" 2>&1 </dev/null &`
}

// bootstrapOf prepares what --bootstrap asks for; without it, it offers it. nil: there is nothing to do.
func bootstrapOf(a *app, source *bangerv1.WorkspaceSource, wanted bool) ([]bootstrap, error) {
	if source == nil {
		if wanted {
			return nil, usagef("--bootstrap is about a repository, and no path is given")
		}
		return nil, nil
	}
	all, err := bootstraps(source.GetPath(), source.GetCopy())
	switch {
	case err != nil && wanted:
		return nil, err
	case err != nil:
		return nil, nil //nolint:nilerr // nobody asked for it
	case wanted && len(all) == 0:
		a.say("the repository names no tools to install: no file of mise, asdf, nix, devbox or devcontainer")
	case wanted:
		return all, nil
	case len(all) > 0:
		a.note("the repository has %s: --bootstrap installs what that names, in the VM", fileNames(all))
	}
	return nil, nil
}

func fileNames(all []bootstrap) string {
	names := make([]string, len(all))
	for i, one := range all {
		names[i] = one.file
	}
	return strings.Join(names, ", ")
}

// needsNetwork refuses to install tools where nothing can be fetched.
func needsNetwork(all []bootstrap, net string) error {
	if len(all) > 0 && net == string(microvm.NetNone) {
		return usagef("--bootstrap fetches tools, and the VM has no network").withHint("leave --net none or --bootstrap out")
	}
	return nil
}

// begin has a VM install the tools, and says where it tells of that. That it can't is no failure of what the user wants.
func beginBootstrap(ctx context.Context, a *app, client *rpcclient.Client, vm *bangerv1.VM, all []bootstrap) {
	if len(all) == 0 {
		return
	}
	var said bytes.Buffer
	spec := &bangerv1.ExecSpec{Args: []string{"/bin/sh", "-c", bootstrapScript(all)}, User: "root"}
	exit, err := client.Exec(ctx, vm.GetId(), spec, rpcclient.Streams{Stdout: &said, Stderr: &said})
	if err == nil && exit.GetCode() != 0 {
		err = fault.New(fault.Internal, "status %d: %s", exit.GetCode(), strings.TrimSpace(said.String()))
	}
	if err != nil {
		a.say("the tools of %s are not installed: %v", fileNames(all), err)
		return
	}
	if !a.quiet {
		a.say("what %s names is being installed; see how: banger exec %s -- cat /root/%s", fileNames(all), vm.GetName(), bootstrapLog)
	}
}
