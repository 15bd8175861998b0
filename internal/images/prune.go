package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Pruned says what was freed, or would be.
type Pruned struct {
	Items []PrunedItem
	Bytes int64
}

// PrunedItem is one thing that was freed.
type PrunedItem struct {
	What  string // "image sha256:...", "unfinished download", "fetched layers", "build logs"
	Bytes int64
}

func (p *Pruned) add(what string, bytes int64) {
	p.Items = append(p.Items, PrunedItem{what, bytes})
	p.Bytes += bytes
}

// logAge is how long a build's log is kept.
const logAge = 24 * time.Hour

// Prune frees what nobody needs: images without a name that no VM uses, what interrupted pulls, imports and builds left
// behind, fetched layers, old build logs. What is being made at the time stays. A dry run only says what there is.
func (s *Store) Prune(ctx context.Context, dryRun bool) (Pruned, error) {
	var out Pruned
	var errs []error
	unfinished, err := s.depot.Abandoned(ctx)
	errs = append(errs, err)
	for _, dir := range unfinished {
		out.add("unfinished work", treeSize(dir))
	}
	if !dryRun {
		errs = append(errs, s.depot.Sweep(ctx))
	}
	errs = append(errs, s.publishing(ctx, func(string) error {
		gone, err := s.collect(ctx, dryRun)
		for _, g := range gone {
			out.add("image "+g.digest(), g.bytes)
		}
		return err
	}))
	layers, err := s.sources.Prune(ctx, dryRun)
	errs = append(errs, err)
	if layers > 0 {
		out.add("fetched layers", layers)
	}
	logs, err := pruneLogs(s.logs, dryRun)
	errs = append(errs, err)
	if logs > 0 {
		out.add("build logs", logs)
	}
	if err := errors.Join(errs...); err != nil {
		return out, fmt.Errorf("prune images: %w", err)
	}
	return out, nil
}

// pruneLogs removes the logs of builds long past.
func pruneLogs(dir string, dryRun bool) (int64, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "image-*.log"))
	if err != nil {
		return 0, err
	}
	var bytes int64
	var errs []error
	for _, path := range logs {
		info, err := os.Lstat(path)
		if err != nil || time.Since(info.ModTime()) < logAge {
			continue
		}
		bytes += allocated(info)
		if !dryRun {
			errs = append(errs, os.Remove(path))
		}
	}
	return bytes, errors.Join(errs...)
}

// treeSize returns what a directory takes on the disk; what vanishes meanwhile doesn't count.
func treeSize(dir string) int64 {
	var bytes int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // as documented
		}
		if info, err := d.Info(); err == nil {
			bytes += allocated(info)
		}
		return nil
	})
	return bytes
}
