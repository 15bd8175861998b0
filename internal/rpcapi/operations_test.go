//go:build fakevmm

package rpcapi_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
	"banger/internal/rpcclient"
)

// underway waits for an operation of a kind and returns its id.
func (b *bed) underway(kind string) string {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		res, err := b.api.Operations.ListOperations(b.Context(), connect.NewRequest(&bangerv1.ListOperationsRequest{}))
		if err != nil {
			b.Fatal(err)
		}
		for _, op := range res.Msg.GetOperations() {
			// It is worth looking at from its first stage on.
			if op.GetKind() == kind && op.GetState() == "running" && len(op.GetStages()) > 0 {
				return op.GetId()
			}
		}
		if time.Now().After(deadline) {
			b.Fatalf("no %s is under way: %v", kind, res.Msg)
		}
	}
}

// watch watches an operation until its end.
func (b *bed) watch(id string) *bangerv1.Operation {
	b.Helper()
	stream, err := b.api.Operations.WatchOperation(b.Context(), connect.NewRequest(&bangerv1.WatchOperationRequest{Id: id}))
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close() //nolint:errcheck // Err tells
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		b.Fatal(err)
	}
	return last
}

func TestAnOperationOutlivesItsClient(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.guestScript("sleep 1\nexec " + guestExe + ` "$@"` + "\n")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	client := make(chan error, 1)
	go func() {
		_, _, err := events(b.api.VMs.Create(ctx, connect.NewRequest(&bangerv1.CreateRequest{Name: "a", Start: true})))
		client <- err
	}()
	id := b.underway("create")
	leave()
	if err := <-client; err == nil {
		t.Error("the client that left got an answer")
	}
	op := b.watch(id)
	if op.GetState() != "succeeded" || op.GetVmName() != "a" || op.GetVmId() == "" || op.GetEndedAt() == nil || len(op.GetStages()) < 3 {
		t.Errorf("the operation ended as %v", op)
	}
	if vm := b.get("a"); vm.GetState() != "running" {
		t.Errorf("the VM is %s", vm.GetState())
	}
}

func TestCancelOperation(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", false)
	b.guestScript("exec sleep 1000\n")
	client := make(chan error, 1)
	go func() {
		_, _, err := events(b.api.VMs.Start(b.Context(), connect.NewRequest(&bangerv1.StartRequest{Vm: "a"})))
		client <- err
	}()
	id := b.underway("start")
	// Who wants the VM meanwhile is told which operation has it.
	_, _, err := events(b.api.VMs.Stop(t.Context(), connect.NewRequest(&bangerv1.StopRequest{Vm: "a"})))
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), id) || !strings.Contains(fault.HintOf(err), id) {
		t.Errorf("stop during a start: %v", err)
	}
	if _, err := b.api.Operations.CancelOperation(t.Context(), connect.NewRequest(&bangerv1.CancelOperationRequest{Id: id[:8]})); err != nil {
		t.Fatal(err)
	}
	if op := b.watch(id); op.GetState() != "canceled" || op.GetErrorKind() != "canceled" || op.GetError() == "" {
		t.Errorf("the operation ended as %v", op)
	}
	err = <-client
	remote, ok := errors.AsType[*rpcclient.Remote](err)
	if !ok || !fault.Is(err, fault.Canceled) || remote.OperationID != id || remote.VM != b.get("a").GetId() {
		t.Errorf("who asked for it got %v (%+v)", err, remote)
	}
	if vm := b.get("a"); vm.GetState() != "stopped" {
		t.Errorf("the VM is %s", vm.GetState())
	}
}

func TestNoSuchOperation(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	_, err := b.api.Operations.CancelOperation(t.Context(), connect.NewRequest(&bangerv1.CancelOperationRequest{Id: "ffffffffffff"}))
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("cancel: %v", err)
	}
	stream, err := b.api.Operations.WatchOperation(t.Context(), connect.NewRequest(&bangerv1.WatchOperationRequest{}))
	if err == nil {
		stream.Receive()
		err = stream.Err()
		_ = stream.Close()
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("watch: %v", err)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	vm := b.create("a", true) // the call returns with the first event
	stream, err := b.api.Events.Events(ctx, connect.NewRequest(&bangerv1.EventsRequest{Follow: true, Vm: "a"}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close() //nolint:errcheck // Err tells
	b.create("b", false)
	if _, _, err := events(b.api.VMs.Delete(t.Context(), connect.NewRequest(&bangerv1.DeleteRequest{Vm: "a", Force: true}))); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for !slices.Contains(kinds, "deleted") && stream.Receive() {
		e := stream.Msg()
		kinds = append(kinds, e.GetKind())
		if e.GetVmId() != vm.GetId() || e.GetVmName() != "a" || len(e.GetOperationId()) != 12 || e.GetAt() == nil {
			t.Errorf("event %v", e)
		}
	}
	if !slices.Equal(kinds, []string{"created", "started", "stopped", "deleted"}) {
		t.Errorf("events %q, %v", kinds, stream.Err())
	}
	leave()
	if stream.Receive() || !fault.Is(stream.Err(), fault.Canceled) {
		t.Errorf("after the client left: %v", stream.Err())
	}
	bad, err := b.api.Events.Events(t.Context(), connect.NewRequest(&bangerv1.EventsRequest{After: -1}))
	if err == nil {
		bad.Receive()
		err = bad.Err()
		_ = bad.Close()
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad number: %v", err)
	}
}
