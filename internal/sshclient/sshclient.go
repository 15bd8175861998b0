// Package sshclient makes the user's own OpenSSH client reach VMs: the options that it needs (ssh_config(5)), and the file in
// which a user may have them for good.
//
// It owns one marked block in the user's configuration, which includes a file of banger's, and not a byte besides. It runs
// nothing and knows no VM.
package sshclient

import (
	"fmt"
	"path/filepath"
	"strings"

	"banger/internal/fault"
)

// Domain is the suffix of the names under which ssh knows VMs.
const Domain = ".vm"

// Pattern matches these names, as ssh's own files write it.
const Pattern = "*" + Domain

// Setup says how VMs are reached.
type Setup struct {
	Banger     string   // absolute path of the program
	Env        []string // NAME=value, of the program's process, on top of what ssh's has
	Identity   string   // path of the private key
	KnownHosts string   // path
}

// Options returns what ssh needs, each as "Keyword value".
func (s Setup) Options() ([]string, error) {
	for _, path := range []string{s.Banger, s.Identity, s.KnownHosts} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "\"\n\r\x00") {
			return nil, fault.New(fault.Unsupported, "ssh's configuration can't hold the path %q", path).
				WithHint("set XDG_STATE_HOME to a directory whose path has no quotes and no line breaks")
		}
	}
	var words []string
	if len(s.Env) > 0 {
		words = append(words, "env")
	}
	words = append(append(words, s.Env...), s.Banger)
	for i, w := range words {
		if strings.ContainsAny(w, "\n\r\x00") {
			return nil, fault.New(fault.Unsupported, "ssh's configuration can't hold %q", w)
		}
		words[i] = shellQuote(w)
	}
	// ssh gives the line to a shell, with an exec before it; % is ssh's.
	proxy := strings.ReplaceAll(strings.Join(words, " "), "%", "%%") + " ssh-proxy %h"
	return []string{
		"ProxyCommand " + proxy,
		"User root",
		"IdentityFile " + quote(s.Identity),
		"IdentitiesOnly yes",
		"PreferredAuthentications publickey",
		"HostKeyAlgorithms ssh-ed25519",
		"UserKnownHostsFile " + quote(s.KnownHosts),
		"GlobalKnownHostsFile none",
		"UpdateHostKeys no",
		"StrictHostKeyChecking yes",
	}, nil
}

// Config is the content of a configuration file for all VMs.
func (s Setup) Config() (string, error) {
	options, err := s.Options()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by banger ssh-config, which makes it anew: changes are better made in ~/.ssh/config.\nHost %s\n", Pattern)
	for _, o := range options {
		fmt.Fprintf(&b, "  %s\n", o)
	}
	return b.String(), nil
}

// quote quotes the path of a file, in which ssh expands tokens.
func quote(path string) string { return `"` + strings.ReplaceAll(path, "%", "%%") + `"` }

// shellQuote quotes a word for a POSIX shell, if it needs it.
func shellQuote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-=:+,@", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
