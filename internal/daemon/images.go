package daemon

import (
	"path/filepath"

	"banger/internal/images"
	"banger/internal/oci"
	"banger/internal/store"
)

// newImages makes the store of images, with registries and archives as its sources.
func newImages(o Options, db *store.Store) *images.Store {
	paths, c := o.Config.Paths, o.Config.Images
	client := oci.New(oci.Options{CacheDir: filepath.Join(paths.Cache, "layers"), Mirrors: c.Mirrors.Value, Log: o.Log})
	return images.New(images.Config{
		Dir: paths.Images(), CacheDir: paths.Cache, Sources: images.OCI(client), Users: db.ImageUsers, Log: o.Log,
		Catalog: images.CatalogSource{Location: c.Catalog.Value, SHA256: c.CatalogSHA256.Value},
	})
}
