package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"banger/internal/fault"
	"banger/internal/progress"
)

// parallelFetches is how many layers are fetched at once.
const parallelFetches = 3

// writeTar reads every layer twice: first what there is, into a tree; then, once the tree is complete, the contents that
// are still in it. Nothing is unpacked to the disk, and memory holds names only.
func (s *Source) writeTar(ctx context.Context, w io.Writer, sink progress.Sink) error {
	t := newTree(s.limits, s.literal)
	if err := s.index(ctx, t, sink); err != nil {
		return err
	}
	plan, err := t.plan(len(s.layers))
	if err != nil {
		return err
	}
	out := &emitter{tw: tar.NewWriter(w), links: plan.links, buf: make([]byte, chunkSize)}
	// What has been written is forgotten: whoever reads the archive remembers it now.
	for i, n := range plan.bare {
		plan.bare[i] = nil
		if err := out.bare(n); err != nil {
			return err
		}
	}
	for i, wanted := range plan.contents {
		if err := out.layer(ctx, s.layers[i], s.packed(), wanted); err != nil {
			return fmt.Errorf("read layer %d of %d: %w", i+1, len(s.layers), err)
		}
	}
	if err := out.tw.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// packed bounds the size of one layer's archive in bytes: contents, and for each entry what its headers may take.
func (s *Source) packed() int64 { return s.limits.bytes + int64(s.limits.entries)*2048 }

// index fetches the layers and applies them in order, each as soon as it and those below are there.
func (s *Source) index(ctx context.Context, t *tree, sink progress.Sink) error {
	group, ctx := errgroup.WithContext(ctx)
	ready := make([]chan struct{}, len(s.layers))
	for i := range ready {
		ready[i] = make(chan struct{})
	}
	group.Go(func() error {
		for i, l := range s.layers {
			select {
			case <-ready[i]:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := s.scan(ctx, t, int32(i), l); err != nil { // there are at most maxLayers
				return fmt.Errorf("read layer %d of %d: %w", i+1, len(s.layers), err)
			}
		}
		return nil
	})
	group.Go(func() error {
		fetches, ctx := errgroup.WithContext(ctx)
		fetches.SetLimit(parallelFetches)
		for i, l := range s.layers {
			fetches.Go(func() error {
				if s.fetch != nil && l.data == nil {
					if err := s.fetch.fetch(ctx, l, sink); err != nil {
						return err
					}
				}
				close(ready[i])
				return nil
			})
		}
		return fetches.Wait()
	})
	return group.Wait()
}

// scan applies one layer to the tree.
func (s *Source) scan(ctx context.Context, t *tree, number int32, l *layer) error {
	in, err := l.open(ctx, s.packed(), true)
	if err != nil {
		return err
	}
	defer in.stop()
	tr := tar.NewReader(in)
	for entry := int32(0); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := t.apply(number, entry, h); err != nil {
			return err
		}
		entry++
	}
	if err := in.verify(l); err != nil {
		return damaged(err)
	}
	return nil
}

// plan is the order in which a tree is written.
type plan struct {
	bare     []*node   // directories, then what has no content
	contents [][]*node // by layer, in the order of its entries
	links    map[*inode][]*node
}

func (t *tree) plan(layers int) (*plan, error) {
	p := &plan{contents: make([][]*node, layers), links: map[*inode][]*node{}}
	bytes := int64(0)
	var others []*node
	var visit func(n *node)
	visit = func(n *node) { // as deep as a path has components
		p.bare = append(p.bare, n)
		for _, c := range n.sorted() {
			switch in := c.inode; {
			case c.isDir():
				visit(c)
			case in.planned:
				p.links[in] = append(p.links[in], c)
			default:
				in.planned = true
				if in.size == 0 {
					others = append(others, c)
					continue
				}
				bytes += in.size
				p.contents[in.layer] = append(p.contents[in.layer], c)
			}
		}
		n.children = nil
	}
	visit(t.root)
	if bytes > t.limits.bytes {
		return nil, fault.New(fault.Invalid, "the image has %d bytes of content, more than the limit of %d", bytes, t.limits.bytes)
	}
	p.bare = append(p.bare, others...)
	for _, list := range p.contents {
		slices.SortFunc(list, func(a, b *node) int { return int(a.inode.entry) - int(b.inode.entry) })
	}
	return p, nil
}

// emitter writes nodes.
type emitter struct {
	tw    *tar.Writer
	links map[*inode][]*node
	buf   []byte
}

// bare writes a node without content, and its other names.
func (e *emitter) bare(n *node) error {
	if err := e.tw.WriteHeader(n.header()); err != nil {
		return fmt.Errorf("write archive: %q: %w", n.path(), err)
	}
	return e.otherNames(n)
}

func (e *emitter) otherNames(n *node) error {
	for _, other := range e.links[n.inode] {
		h := other.header()
		h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, n.path(), 0, nil
		if err := e.tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write archive: %q: %w", h.Name, err)
		}
	}
	return nil
}

// layer writes the files whose contents one layer has.
func (e *emitter) layer(ctx context.Context, l *layer, limit int64, wanted []*node) error {
	if len(wanted) == 0 {
		return nil
	}
	in, err := l.open(ctx, limit, false)
	if err != nil {
		return err
	}
	defer in.stop()
	tr := tar.NewReader(in)
	for entry := int32(0); len(wanted) > 0; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if n := wanted[0]; n.inode.entry == entry {
			if h.Size != n.inode.size {
				break
			}
			if err := e.file(n, tr); err != nil {
				return err
			}
			wanted[0] = nil
			wanted = wanted[1:]
		}
		entry++
	}
	if len(wanted) > 0 {
		return fault.New(fault.Corrupt, "the archive has changed while it was read")
	}
	return nil
}

func (e *emitter) file(n *node, content io.Reader) error {
	if err := e.tw.WriteHeader(n.header()); err != nil {
		return fmt.Errorf("write archive: %q: %w", n.path(), err)
	}
	for left := n.inode.size; left > 0; {
		buf := e.buf[:min(left, int64(len(e.buf)))]
		if _, err := io.ReadFull(content, buf); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return damaged(err)
		}
		if _, err := e.tw.Write(buf); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
		left -= int64(len(buf))
	}
	return e.otherNames(n)
}
