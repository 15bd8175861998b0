package config

import (
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"banger/internal/fault"
)

// imageName takes a name of the catalogue or a reference of a registry. It only looks at the characters: what they mean is
// the image store's to say.
func imageName(raw any) (string, error) {
	text, ok := raw.(string)
	if !ok || !regexp.MustCompile(`^[a-z0-9][A-Za-z0-9._:/@-]{0,254}$`).MatchString(text) {
		return "", bad(raw, "the name of an image, such as \"debian-bookworm\" or \"alpine:3.20\"")
	}
	return text, nil
}

// mirrors takes a list of "REGISTRY=MIRROR".
func mirrors(raw any) (map[string][]string, error) {
	const want = "a list of mirrors, such as [\"docker.io=mirror.example.com\"]"
	list, ok := raw.([]any)
	if !ok {
		return nil, bad(raw, want)
	}
	out := map[string][]string{}
	for _, item := range list {
		text, _ := item.(string)
		registry, mirror, found := strings.Cut(text, "=")
		if !found || registry == "" || mirror == "" || strings.ContainsAny(text, " \t\n") || strings.Contains(registry, "/") {
			return nil, bad(item, want)
		}
		out[registry] = append(out[registry], mirror)
	}
	return out, nil
}

// location takes an absolute path or an https URL.
func location(raw any) (string, error) {
	text, ok := raw.(string)
	u, err := url.Parse(text)
	if ok && (filepath.IsAbs(text) || err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil) {
		return text, nil
	}
	return "", bad(raw, "an absolute path or an https URL")
}

func sha256Hex(raw any) (string, error) {
	text, ok := raw.(string)
	if !ok || !regexp.MustCompile(`^[0-9a-fA-F]{64}$`).MatchString(text) {
		return "", bad(raw, "a SHA-256 in hexadecimal: 64 characters")
	}
	return strings.ToLower(text), nil
}

// check looks at what can only be judged together.
func (i Images) check() error {
	if strings.HasPrefix(i.Catalog.Value, "https:") && i.CatalogSHA256.Value == "" {
		return fault.New(fault.Invalid, "images.catalog is a URL, and images.catalog_sha256 is not set").
			WithHint("add catalog_sha256 = \"...\" to [images]: the output of sha256sum")
	}
	return nil
}
