package cli

import (
	"context"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	bangerv1 "banger/internal/gen/banger/v1"
)

// Set tells what it was asked, in words, as the effect of one value.
func (f *fakeDaemon) Set(_ context.Context, r *connect.Request[bangerv1.SetRequest]) (*connect.Response[bangerv1.SetResponse], error) {
	for _, vm := range f.vms {
		if vm.GetId() != r.Msg.GetVm() {
			continue
		}
		if vm.GetState() == "failed" {
			return nil, remoteError(connect.CodeInvalidArgument, "invalid", "disks only grow", "make a new one")
		}
		r.Msg.Vm = ""
		text, err := protojson.Marshal(r.Msg)
		return connect.NewResponse(&bangerv1.SetResponse{Vm: vm, Results: []*bangerv1.SetResult{
			{Key: "all", Value: strings.ReplaceAll(string(text), " ", ""), Effect: "next-start", Detail: "why\x1b[2J"},
		}}), err
	}
	return nil, remoteError(connect.CodeNotFound, "not-found", "gone", "")
}

func TestSet(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs()})
	b.run("vm", "set", "alpha", "beta", "bbbb", "--vcpu", "2", "--memory", "1G", "--disk-size", "9G", "--ttl", "0s",
		"--idle-timeout", "30m", "--label", "a=b-", "--label", "c-", "--output", "json").want(t, 125, `[
  {
    "id": "aaaa00000001",
    "name": "alpha",
    "key": "all",
    "value": "{\"vcpus\":2,\"memory\":\"1073741824\",\"diskSize\":\"9663676416\",\"labels\":{\"a\":\"b-\"},\"removeLabels\":[\"c\"],\"ttl\":\"0s\",\"idleTimeout\":\"1800s\"}",
    "effect": "next-start",
    "detail": "why\u001b[2J"
  },
  {
    "id": "bbbb00000003",
    "name": "aaaa",
    "key": "all",
    "value": "{\"vcpus\":2,\"memory\":\"1073741824\",\"diskSize\":\"9663676416\",\"labels\":{\"a\":\"b-\"},\"removeLabels\":[\"c\"],\"ttl\":\"0s\",\"idleTimeout\":\"1800s\"}",
    "effect": "next-start",
    "detail": "why\u001b[2J"
  }
]
`, "banger: set \"beta\": disks only grow\n  try: make a new one\n")
	got := b.run("vm", "set", "alpha", "--vcpu", "2")
	if got.status != 0 || !strings.Contains(got.stdout, "alpha  all      {\"vcpus\":2}  next-start  why") || strings.Contains(got.stdout, "\x1b[2J") {
		t.Errorf("table: %+v", got)
	}
}

// What is not given is not sent, and what makes no sense is refused before the daemon is asked.
func TestSetRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t, &fakeDaemon{vms: someVMs()})
	for _, args := range [][]string{
		{},
		{"--vcpu", "0"},
		{"--vcpu", "-1"},
		{"--vcpu", "33"},
		{"--memory", "0"},
		{"--memory", "-1"},
		{"--memory", "1P"},
		{"--memory", "2T"},
		{"--disk-size", "0"},
		{"--disk-size", "17T"},
		{"--label", "a"},
		{"--label", "=b"},
		{"--label", "-"},
		{"--ttl", "-1s"},
		{"--idle-timeout", "x"},
	} {
		got := b.run(append([]string{"vm", "set", "alpha"}, args...)...)
		if got.status != exitUsage || got.stdout != "" || !strings.Contains(got.stderr, "try:") {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if got := b.run("vm", "set", "--vcpu", "1"); got.status != exitUsage {
		t.Errorf("no VM: %+v", got)
	}
}
