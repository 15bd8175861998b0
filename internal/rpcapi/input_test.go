//go:build fakevmm

package rpcapi_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/fault"
	bangerv1 "banger/internal/gen/banger/v1"
)

// A client that keeps to its credit can signal a command that does not read its input, however much there is of that; one
// that does not keep to it waits, and gets everything through in the end.
func TestSignalsPassUnreadInput(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.create("a", true)
	const block = 16 << 10
	t.Run("credit", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{Args: []string{"sleep", "1000"}, Stdin: true})
		var sent, credit int64
		for full := false; !full; {
			res, err := s.stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			credit += res.GetStdinCredit()
			for ; credit-sent >= block; sent += block {
				s.stdin(strings.Repeat("x", block))
			}
			// The daemon takes a window, and so does the guest, which gives back nothing of it.
			full = credit >= 2*256<<10
		}
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Resize{Resize: &bangerv1.WindowSize{Rows: 1, Cols: 1}}})
		s.send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Signal{Signal: 15}})
		if exit := s.end(); exit.GetSignal() != 15 {
			t.Errorf("exit %v", exit)
		}
	})
	t.Run("no heed of credit", func(t *testing.T) {
		t.Parallel()
		s := (&bed{T: t, api: b.api}).exec("a", &bangerv1.ExecSpec{Args: []string{"sh", "-c", "read x; wc -c"}, Stdin: true})
		go func() {
			for range 100 {
				m := &bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_Stdin{Stdin: []byte(strings.Repeat("x", block-1) + "\n")}}
				if s.stream.Send(m) != nil {
					return
				}
			}
			_ = s.stream.Send(&bangerv1.AttachRequest{Kind: &bangerv1.AttachRequest_CloseStdin{CloseStdin: true}})
		}()
		// read(1) takes a byte at a time, up to the first line break.
		if exit := s.end(); exit.GetCode() != 0 || strings.TrimSpace(s.out) != "1622016" {
			t.Errorf("exit %v, %q", exit, s.out)
		}
	})
}

// A run with a malformed command makes no VM.
func TestRunRefusesBeforeItMakesAVM(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for name, start := range map[string]*bangerv1.AttachStart{
		"variable of the command": {Exec: &bangerv1.ExecSpec{Args: []string{"true"}, Env: []string{"=x"}}},
		"no pair":                 {Exec: &bangerv1.ExecSpec{Args: []string{"true"}, Env: []string{"x"}}},
		"variable of the VM":      {Exec: &bangerv1.ExecSpec{Args: []string{"true"}}},
	} {
		create := &bangerv1.CreateRequest{Name: "a"}
		if name == "variable of the VM" {
			create.Spec = &bangerv1.Spec{Env: map[string]string{"A=B": "x"}}
		}
		start.Target = &bangerv1.AttachStart_Create{Create: create}
		if _, err := b.attach(b.api.VMs.Run, t.Context(), start).next(never); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if res, err := b.api.VMs.List(t.Context(), connect.NewRequest(&bangerv1.ListRequest{})); err != nil || len(res.Msg.GetVms()) > 0 {
		t.Errorf("there is %v, %v", res, err)
	}
}
