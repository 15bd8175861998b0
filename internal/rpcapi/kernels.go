package rpcapi

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/kernels"
	"banger/internal/operations"
)

// kernelServer serves the kernel service.
type kernelServer struct {
	kernels    *kernels.Store
	operations *operations.Registry
}

func (s kernelServer) ListKernels(
	_ context.Context, req *connect.Request[bangerv1.ListKernelsRequest],
) (*connect.Response[bangerv1.ListKernelsResponse], error) {
	list, err := s.kernels.List()
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.ListKernelsResponse{}
	here := map[string]*bangerv1.Kernel{}
	for _, k := range list {
		here[k.Name] = s.toKernel(k)
		res.Kernels = append(res.Kernels, here[k.Name])
	}
	if !req.Msg.GetAvailable() {
		return connect.NewResponse(res), nil
	}
	catalog, err := s.kernels.Catalog()
	if err != nil {
		return nil, toError(err)
	}
	for _, a := range catalog {
		if k := here[a.Name]; k != nil {
			k.Description, k.Arch = a.Description, a.Arch
			continue
		}
		res.Kernels = append(res.Kernels, &bangerv1.Kernel{Name: a.Name, Description: a.Description, Arch: a.Arch, Source: a.Source})
	}
	return connect.NewResponse(res), nil
}

func (s kernelServer) toKernel(k kernels.Kernel) *bangerv1.Kernel {
	source := strings.TrimSpace(k.Package + " " + k.Version)
	if source == "" {
		source = k.Source
	}
	out := &bangerv1.Kernel{
		Name: k.Name, Release: k.Release, Digest: k.Digest, Source: source, CreatedAt: toTime(k.Created),
		Modules: k.ModulesImage != "", Bzimage: k.ImagePath != "", Vmlinux: k.ELFPath != "",
	}
	if facts, err := s.kernels.Facts(k); err == nil {
		out.Pvh = facts.PVH
	}
	return out
}

func (s kernelServer) GetKernel(
	ctx context.Context, req *connect.Request[bangerv1.GetKernelRequest],
) (*connect.Response[bangerv1.GetKernelResponse], error) {
	k, err := s.kernels.Get(req.Msg.GetName())
	if err != nil {
		return nil, toError(err)
	}
	facts, err := s.kernels.Facts(k)
	if err != nil {
		return nil, toError(err)
	}
	users, err := s.kernels.Users(ctx, k.Name)
	if err != nil {
		return nil, toError(err)
	}
	res := &bangerv1.GetKernelResponse{Kernel: s.toKernel(k), Users: users}
	for _, f := range facts.Features {
		res.Features = append(res.Features, &bangerv1.KernelFeature{Name: f.Name, Support: string(f.Support)})
	}
	for _, f := range facts.Backends {
		res.Backends = append(res.Backends, &bangerv1.KernelFitness{Backend: f.Backend, Problems: f.Problems, Notes: f.Notes})
	}
	return connect.NewResponse(res), nil
}

func (s kernelServer) PullKernel(
	ctx context.Context, req *connect.Request[bangerv1.PullKernelRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	name := req.Msg.GetName()
	if name == "" {
		return toError(fault.New(fault.Invalid, "no kernel named"))
	}
	return operate(ctx, s.operations, stream, operations.Request{Kind: "pull", Name: name},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			k, err := s.kernels.Ensure(ctx, name, op.Report)
			return s.event(k, err)
		})
}

func (s kernelServer) ImportKernel(
	ctx context.Context, req *connect.Request[bangerv1.ImportKernelRequest], stream *connect.ServerStream[bangerv1.Event],
) error {
	return operate(ctx, s.operations, stream, operations.Request{Kind: "import", Name: req.Msg.GetName()},
		func(ctx context.Context, op *operations.Operation) (*bangerv1.Event, error) {
			k, err := s.kernels.Import(ctx, req.Msg.GetName(), req.Msg.GetPaths(), op.Report)
			return s.event(k, err)
		})
}

func (s kernelServer) event(k kernels.Kernel, err error) (*bangerv1.Event, error) {
	if err != nil {
		return nil, err
	}
	return &bangerv1.Event{Kind: &bangerv1.Event_Kernel{Kernel: s.toKernel(k)}}, nil
}

func (s kernelServer) DeleteKernel(
	ctx context.Context, req *connect.Request[bangerv1.DeleteKernelRequest],
) (*connect.Response[bangerv1.DeleteKernelResponse], error) {
	if err := s.kernels.Delete(ctx, req.Msg.GetName()); err != nil {
		return nil, toError(err)
	}
	return connect.NewResponse(&bangerv1.DeleteKernelResponse{}), nil
}
