// Package oci reads images from registries and archives as one flattened root filesystem, and writes images to both.
//
// It owns what lies between an image reference and a tar stream: names, credentials, manifests, digests, layers and their
// order. It doesn't own where root filesystems are kept: its cache of layers may be deleted at any time.
package oci

import "time"

// Platform is what an image is made for.
type Platform struct {
	OS, Architecture, Variant string // "linux", "amd64", ""
}

// Image is an image that was found, none of whose layers need to be here yet.
type Image struct {
	Ref      string // as Open was given it, with registry and tag filled in: "docker.io/library/alpine:3.20"
	Digest   string // "sha256:..." of its manifest, for the platform
	Config   Config
	Layers   []Layer // lowest first
	Platform Platform
	Created  time.Time // zero: not said
}

// Config says how an image wants to be run: the part of an OCI image configuration that banger honours.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // KEY=VALUE
	WorkDir      string            `json:"workdir,omitempty"`
	User         string            `json:"user,omitempty"` // name, uid, name:group or uid:gid
	Labels       map[string]string `json:"labels,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp"
	Volumes      []string          `json:"volumes,omitempty"`
	StopSignal   string            `json:"stop_signal,omitempty"` // "SIGTERM", "15"
}

// Layer is one layer of an image.
type Layer struct {
	Digest string // "sha256:..." as it is stored
	Size   int64  // bytes, as it is stored
}
