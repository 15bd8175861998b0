package oci

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/fault"
	"banger/internal/progress"
)

// accepted are the media types of manifests that registries may answer with.
const accepted = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"

// leastGain is how many bytes of a layer an attempt must bring to count as getting further.
const leastGain = 1 << 20

// endpoint is one repository of one registry, or of a mirror of it.
type endpoint struct {
	repo   name.Repository
	scheme string
	http   *http.Client
}

// host is what people call the registry.
func (e *endpoint) host() string { return familiarHost(e.repo.RegistryStr()) }

// pull is one image in a registry: a shelf and a fetcher.
type pull struct {
	client *Client
	cache  *cache
	source *endpoint         // has the manifest
	others []name.Repository // where layers may be had if the source fails
}

// openRegistry asks the mirrors, then the registry itself.
func (c *Client) openRegistry(ctx context.Context, r Reference, want wish) (*Source, error) {
	repos, err := c.repositories(r)
	if err != nil {
		return nil, err
	}
	var failed error
	for i, repo := range repos {
		ep, err := c.connect(ctx, repo)
		if err == nil {
			p := &pull{client: c, cache: c.cache(), source: ep, others: repos[i+1:]}
			var src *Source
			if src, err = p.open(ctx, r, want); err == nil {
				return src, nil
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if i < len(repos)-1 {
			c.log.WarnContext(ctx, "a mirror doesn't serve the image", "mirror", repo.RegistryStr(), "image", r.String(), "err", err)
		}
		failed = fmt.Errorf("open %s: %w", r, err)
	}
	return nil, failed
}

// repositories returns where an image may be, in the order in which to ask.
func (c *Client) repositories(r Reference) ([]name.Repository, error) {
	var repos []name.Repository
	add := func(host, path string) error {
		opts := []name.Option{name.StrictValidation}
		if isLoopback(host) {
			opts = append(opts, name.Insecure)
		}
		repo, err := name.NewRepository(host+"/"+path, opts...)
		if err == nil {
			repos = append(repos, repo)
		}
		return err
	}
	for _, m := range c.opts.Mirrors[r.Registry] {
		plain := strings.HasPrefix(m, "http://")
		m = strings.Trim(strings.TrimPrefix(strings.TrimPrefix(m, "http://"), "https://"), "/")
		host, prefix, _ := strings.Cut(m, "/")
		if plain && !isLoopback(host) {
			return nil, fault.New(fault.Invalid, "the mirror %q of %s has no TLS", m, r.Registry).WithHint("plain HTTP is for this machine only")
		}
		if prefix != "" {
			prefix += "/"
		}
		if err := add(host, prefix+r.Repository); err != nil {
			return nil, fault.New(fault.Invalid, "bad mirror %q of %s: %s", m, r.Registry, why(err))
		}
	}
	if err := add(r.Registry, r.Repository); err != nil {
		return nil, fault.New(fault.Invalid, "bad image reference %q: %s", r, why(err))
	}
	return repos, nil
}

// connect finds out how a registry wants to be talked to, and logs in.
func (c *Client) connect(ctx context.Context, repo name.Repository) (*endpoint, error) {
	auth, err := authn.Resolve(ctx, c.opts.Keychain, repo)
	if err != nil {
		return nil, fault.New(fault.Denied, "read the credentials for %s: %w", repo.RegistryStr(), err).
			WithHint("look at ~/.docker/config.json and the credential helper it names")
	}
	g := &guard{inner: c.opts.Transport, loopback: isLoopback(repo.RegistryStr()), stall: c.tempo.stall}
	var rt http.RoundTripper
	ctx, cancel := context.WithTimeout(ctx, c.tempo.answer)
	defer cancel()
	err = c.tempo.retry(ctx, true, func() (bool, error) {
		var err error
		rt, err = transport.NewWithContext(ctx, repo.Registry, auth, g, []string{repo.Scope(transport.PullScope)})
		return false, err
	})
	if err != nil {
		return nil, classify(familiarHost(repo.RegistryStr()), err)
	}
	// The transport knows by now which scheme the registry answers to, and sets it.
	return &endpoint{repo: repo, scheme: "https", http: &http.Client{Transport: rt, CheckRedirect: noLoops}}, nil
}

func (p *pull) open(ctx context.Context, r Reference, want wish) (*Source, error) {
	top := v1.Descriptor{}
	if r.Digest != "" {
		h, err := v1.NewHash(r.Digest)
		if err != nil {
			return nil, fault.New(fault.Invalid, "bad digest %q", r.Digest)
		}
		top.Digest = h
	}
	img, layers, err := assemble(ctx, p.shelf(r), top, want)
	if err != nil {
		return nil, err
	}
	img.Ref = r.String()
	s := p.client.source(img, layers)
	s.fetch, s.close = p, func() error { return closeAll(layers) }
	return s, nil
}

// get sends one request. The caller closes the body of the answer, whose status is one of codes.
func (e *endpoint) get(ctx context.Context, path string, header http.Header, codes ...int) (*http.Response, error) {
	url := e.scheme + "://" + e.repo.RegistryStr() + "/v2/" + e.repo.RepositoryStr() + "/" + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, codes...); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp, nil
}

// remoteShelf is the shelf of an image that was asked for by tag or digest.
type remoteShelf struct {
	*pull
	tag string
}

func (p *pull) shelf(r Reference) remoteShelf { return remoteShelf{p, r.Tag} }

func (s remoteShelf) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	id := s.tag
	if d.Digest.Hex != "" {
		id = d.Digest.String()
	}
	return s.small(ctx, "manifests/"+id, maxManifest, http.Header{"Accept": {accepted}})
}

func (s remoteShelf) config(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	return s.small(ctx, "blobs/"+d.Digest.String(), maxConfig, http.Header{})
}

// small reads an object of at most limit bytes.
func (p *pull) small(ctx context.Context, path string, limit int64, header http.Header) ([]byte, error) {
	ep := p.source
	ctx, cancel := context.WithTimeout(ctx, p.client.tempo.answer)
	defer cancel()
	var raw []byte
	err := p.client.tempo.retry(ctx, false, func() (bool, error) {
		resp, err := ep.get(ctx, path, header.Clone(), http.StatusOK)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close() //nolint:errcheck // read only
		raw, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
		if err == nil && int64(len(raw)) > limit {
			return false, fault.New(fault.Corrupt, "%s sends more than %d bytes of %s", ep.host(), limit, path)
		}
		if told := resp.Header.Get("Docker-Content-Digest"); err == nil && isDigest(told) && told != digestOf(raw) {
			return false, fault.New(fault.Corrupt, "%s sends %s with the digest %s, and says it is %s", ep.host(), path, digestOf(raw), told)
		}
		return false, err
	})
	return raw, classify(ep.host(), err)
}

// fetch gets a layer from the cache, or from the first endpoint that has it as it should be.
func (p *pull) fetch(ctx context.Context, l *layer, sink progress.Sink) (err error) {
	stage := "fetch layer " + l.Digest[len("sha256:"):][:12]
	end := sink.Stage(stage)
	defer func() { end(err) }()
	f, err := p.cache.get(ctx, l.Layer, func(ctx context.Context, f *os.File, have int64) error {
		d := &download{pull: p, layer: l.Layer, f: f, have: have, hash: newHash(), report: func(have int64) {
			sink.Send(progress.Update{Stage: stage, Current: have, Total: l.Size, Unit: "bytes"})
		}}
		return d.run(ctx)
	})
	if err != nil {
		return fmt.Errorf("fetch layer %s: %w", l.Digest, err)
	}
	l.data, l.proven, l.close = io.NewSectionReader(f, 0, l.Size), true, f.Close
	return nil
}

// download completes the file of one layer.
type download struct {
	pull   *pull
	layer  Layer
	f      *os.File
	have   int64 // bytes of the file, all of them in hash
	hash   hash.Hash
	report func(have int64)
	told   time.Time // when report was called
}

func (d *download) run(ctx context.Context) error {
	if err := d.reset(d.have); err != nil {
		return err
	}
	err := d.fetchFrom(ctx, d.pull.source)
	for _, repo := range d.pull.others {
		if err == nil || ctx.Err() != nil || isFile(err) {
			break
		}
		d.pull.client.log.WarnContext(ctx, "a mirror doesn't serve a layer", "layer", d.layer.Digest, "err", err)
		var ep *endpoint
		if ep, err = d.pull.client.connect(ctx, repo); err == nil {
			err = d.fetchFrom(ctx, ep)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return full(err)
}

// fetchFrom completes the layer from one endpoint. If that ends in wrong data, the file is empty again; and if it had a
// beginning from elsewhere that may have been at fault, it is fetched once more as a whole.
func (d *download) fetchFrom(ctx context.Context, ep *endpoint) error {
	resumed := d.have > 0
	err := d.from(ctx, ep)
	if fault.Is(err, fault.Corrupt) {
		if err := d.reset(0); err != nil {
			return err
		}
		if resumed {
			return d.fetchFrom(ctx, ep)
		}
	}
	return classify(ep.host(), err)
}

// reset cuts the file to length, and makes hash that of what is left.
func (d *download) reset(length int64) error {
	if length > d.layer.Size {
		length = 0
	}
	d.hash.Reset()
	d.have = length
	if err := d.f.Truncate(length); err != nil {
		return err
	}
	_, err := io.Copy(d.hash, io.NewSectionReader(d.f, 0, length))
	return err
}

// from completes the layer from one endpoint, in several attempts, and checks it.
func (d *download) from(ctx context.Context, ep *endpoint) error {
	err := d.pull.client.tempo.retry(ctx, false, func() (bool, error) {
		before := d.have
		if before == d.layer.Size {
			return false, nil
		}
		err := d.attempt(ctx, ep)
		return d.have-before >= leastGain, err
	})
	if err != nil {
		return err
	}
	if got := sum(d.hash); got != d.layer.Digest {
		return fault.New(fault.Corrupt, "%s sends other data than it should: its digest is %s", ep.host(), got)
	}
	return nil
}

// attempt asks for what is missing and appends it.
func (d *download) attempt(ctx context.Context, ep *endpoint) error {
	header := http.Header{}
	codes := []int{http.StatusOK}
	if d.have > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(d.have, 10)+"-")
		codes = append(codes, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	}
	resp, err := ep.get(ctx, "blobs/"+d.layer.Digest, header, codes...)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if d.have > 0 && !continues(resp, d.have) {
		if err := d.reset(0); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fault.New(fault.Unavailable, "%s doesn't continue a layer where it was told to", ep.host())
		}
	}
	return d.take(resp.Body, ep)
}

// continues reports whether an answer begins where it should.
func continues(resp *http.Response, at int64) bool {
	return resp.StatusCode == http.StatusPartialContent &&
		strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(at, 10)+"-")
}

func (d *download) take(body io.Reader, ep *endpoint) error {
	buf := make([]byte, chunkSize)
	for {
		n, err := body.Read(buf)
		if d.have+int64(n) > d.layer.Size {
			return fault.New(fault.Corrupt, "%s sends more than the %d bytes that the layer has", ep.host(), d.layer.Size)
		}
		if _, err := d.f.WriteAt(buf[:n], d.have); err != nil {
			return err
		}
		d.hash.Write(buf[:n]) // never fails
		d.have += int64(n)
		if time.Since(d.told) > 100*time.Millisecond || d.have == d.layer.Size {
			d.told = time.Now()
			d.report(d.have)
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return err
		case d.have < d.layer.Size:
			return fault.New(fault.Unavailable, "%s breaks off after %d of %d bytes", ep.host(), d.have, d.layer.Size)
		default:
			return nil
		}
	}
}
