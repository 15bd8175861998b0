package oci

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/fault"
)

// leastProgress is how many bytes must come within tempo.stall.
const leastProgress = 4 << 10

var (
	errStalled   = errors.New("it stopped sending")
	errPlainHTTP = errors.New("plain HTTP to another machine is refused")
	errRedirects = errors.New("too many redirects")
)

func newTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    15 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    parallelFetches,
		MaxResponseHeaderBytes: 256 << 10,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // layers are digested as they come
	}
}

// guard lies between everything that talks to registries and the network. It keeps plain HTTP on this machine and
// credentials with the host that they are for, and ends what makes no progress.
type guard struct {
	inner    http.RoundTripper
	loopback bool // the registry is this machine: only then others may be reached without TLS, if they are this machine too
	stall    time.Duration
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && (!g.loopback || !isLoopback(req.URL.Host)) {
		return nil, fmt.Errorf("%w (%s)", errPlainHTTP, req.URL.Host)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	out := req.Clone(ctx)
	if first := origin(req); first.URL.Host != req.URL.Host || first.URL.Scheme != req.URL.Scheme {
		out.Header.Del("Authorization")
		out.Header.Del("Cookie")
	}
	timer := time.AfterFunc(g.stall, func() { cancel(errStalled) })
	resp, err := g.inner.RoundTrip(out)
	if err != nil {
		timer.Stop()
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &watched{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, stall: g.stall}
	resp.Request = req
	return resp, nil
}

// origin returns the request that a chain of redirects began with.
func origin(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req
}

// watched is a body that must make progress.
type watched struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // of the one request
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	since  int // bytes since the timer was set
	once   sync.Once
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if w.since += n; w.since >= leastProgress {
		w.since = 0
		w.timer.Reset(w.stall)
	}
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(w.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

func (w *watched) Close() error {
	err := w.ReadCloser.Close()
	w.once.Do(func() {
		w.timer.Stop()
		w.cancel(nil)
	})
	return err
}

// noLoops is the redirect policy of all requests.
func noLoops(_ *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errRedirects
	}
	return nil
}

// temporary reports whether another attempt may help. At first contact a host that isn't there is not there.
func temporary(err error, first bool) bool {
	if e, ok := errors.AsType[*transport.Error](err); ok {
		return e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusRequestTimeout
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.Kind == fault.Unavailable
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return !dns.IsNotFound
	}
	switch {
	case errors.Is(err, errPlainHTTP), errors.Is(err, errRedirects), errors.Is(err, context.Canceled), isCertificate(err):
		return false
	case errors.Is(err, syscall.ECONNREFUSED):
		return !first
	case errors.Is(err, errStalled):
		return true
	}
	_, file := errors.AsType[*fs.PathError](err)
	return !file
}

func isCertificate(err error) bool {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return true
	}
	_, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok
}

// isSystem reports whether an error comes from the host and says nothing about what was read.
func isSystem(err error) bool {
	if _, ok := errors.AsType[syscall.Errno](err); ok {
		return true
	}
	_, ok := errors.AsType[*fs.PathError](err)
	return ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, fs.ErrClosed)
}

// classify gives an error of a registry its kind.
func classify(host string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if e, ok := errors.AsType[*transport.Error](err); ok {
		switch e.StatusCode {
		case http.StatusNotFound:
			return fault.New(fault.NotFound, "%s has no such image or layer", host)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fault.New(fault.Denied, "%s refuses access, or has no such image (HTTP status %d)", host, e.StatusCode).
				WithHint("check the name, or log in: docker login %s", host)
		}
		return fault.New(fault.Unavailable, "%s answers with HTTP status %d%s", host, e.StatusCode, reason(e))
	}
	switch {
	case errors.Is(err, context.Canceled), isFile(err):
		return err
	case errors.Is(err, errPlainHTTP):
		return fault.New(fault.Denied, "%s can't be used: %w", host, err).WithHint("give the registry a certificate, or reach it through a tunnel that ends on this machine")
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Timeout, "%s took too long: %w", host, err)
	}
	return fault.New(fault.Unavailable, "%s can't be reached: %w", host, err)
}

func isFile(err error) bool {
	_, ok := errors.AsType[*fs.PathError](err)
	return ok
}

// reason is what a registry says of itself, shortened.
func reason(e *transport.Error) string {
	if len(e.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(": %.200q", e.Errors[0].String())
}

// retry calls f until it succeeds, fails for good, or has failed too often one time after the other. f reports whether
// it got further.
func (t tempo) retry(ctx context.Context, first bool, f func() (further bool, err error)) error {
	for failed := 0; ; {
		further, err := f()
		if err == nil || ctx.Err() != nil || !temporary(err, first) {
			return err
		}
		if further {
			failed = 0
		}
		if failed++; failed >= t.attempts {
			return err
		}
		pause := t.backoff << (failed - 1)
		pause += rand.N(pause/4 + 1) // spreads load
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
