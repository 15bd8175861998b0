package oci

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/fault"
	"banger/internal/progress"
)

// pushStall bounds one request to a registry. A layer is one request, and only its end is answered.
const pushStall = time.Hour

// Push writes an image to a registry under a reference with a tag ("latest" if it has none). Credentials come from the
// client's keychain; without TLS only this machine is spoken to.
//
// It fails with fault.Denied if the registry wants other credentials, fault.Unavailable if it can't be reached.
func (c *Client) Push(ctx context.Context, p *Packed, ref string, sink progress.Sink) error {
	tag, err := name.NewTag(strings.TrimPrefix(ref, "docker://"), name.WithDefaultTag("latest"))
	if err != nil {
		return fault.New(fault.Invalid, "bad reference %.200q: %w", ref, err).WithHint("write it as registry/repository:tag")
	}
	end := sink.Stage("push " + tag.Name())
	err = c.push(ctx, p, tag, sink)
	end(err)
	return err
}

func (c *Client) push(ctx context.Context, p *Packed, tag name.Tag, sink progress.Sink) error {
	updates := make(chan v1.Update, 16)
	told := make(chan struct{})
	go func() { // ends when Write has closed the channel
		defer close(told)
		for u := range updates {
			sink.Send(progress.Update{Stage: "push " + tag.Name(), Current: u.Complete, Total: u.Total, Unit: "bytes"})
		}
	}()
	err := remote.Write(tag, p.image,
		remote.WithContext(ctx), remote.WithAuthFromKeychain(c.opts.Keychain), remote.WithProgress(updates),
		remote.WithTransport(&guard{inner: c.opts.Transport, loopback: isLoopback(tag.RegistryStr()), stall: pushStall}),
	)
	<-told
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	refused, answered := errors.AsType[*transport.Error](err)
	switch {
	case errors.Is(err, errPlainHTTP):
		return fault.New(fault.Denied, "push to %s: %w", tag.Name(), err)
	case answered && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden):
		return fault.New(fault.Denied, "push to %s: %w", tag.Name(), err).WithHint("log in: docker login %s", tag.RegistryStr())
	case answered && refused.StatusCode < http.StatusInternalServerError:
		return fault.New(fault.Invalid, "push to %s: %w", tag.Name(), err)
	default:
		return fault.New(fault.Unavailable, "push to %s: %w", tag.Name(), err)
	}
}
