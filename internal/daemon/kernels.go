package daemon

import (
	"context"

	"banger/internal/fault"
	"banger/internal/images"
	"banger/internal/kernels"
	"banger/internal/machines"
	"banger/internal/store"
)

// newKernels returns the store of kernels. A VM's row, which names its kernel, is there before the kernel is looked for;
// images name kernels to boot with.
func newKernels(o Options, db *store.Store, im *images.Store) *kernels.Store {
	return kernels.New(kernels.Config{
		Dir: o.Config.Paths.Kernels(), CacheDir: o.Config.Paths.Cache, Log: o.Log, Catalog: o.Config.Kernels.Catalog.Value,
		Users: func(ctx context.Context, name string) ([]string, error) {
			vms, err := db.List(ctx)
			if err != nil {
				return nil, err
			}
			var users []string
			for _, vm := range vms {
				if vm.Spec.Kernel == name && !vm.IsSpare() {
					users = append(users, "VM "+vm.Name)
				}
			}
			list, err := im.List()
			if err != nil {
				return nil, err
			}
			for _, image := range list {
				if image.Kernel == name {
					users = append(users, "image "+image.Name)
				}
			}
			return users, nil
		},
	})
}

// bootable says which file of a kernel each backend boots, or why it can't.
func (s sources) bootable(k kernels.Kernel, initramfs string) (machines.Kernel, error) {
	out := machines.Kernel{Initramfs: initramfs, Modules: k.ModulesImage, Paths: map[string]string{}, Unfit: map[string]error{}}
	if out.Path = k.ELFPath; out.Path == "" {
		out.Path = k.ImagePath
	}
	facts, err := s.kernels.Facts(k)
	if err != nil {
		return machines.Kernel{}, err
	}
	for _, f := range facts.Backends {
		path, err := s.kernels.BootPath(k, f.Backend)
		switch {
		case err == nil:
			out.Paths[f.Backend] = path
		case fault.Is(err, fault.Unsupported):
			out.Unfit[f.Backend] = err
		default:
			return machines.Kernel{}, err
		}
	}
	return out, nil
}
