package cli

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bangerv1 "banger/internal/gen/banger/v1"
)

func TestEvents(t *testing.T) {
	t.Parallel()
	var asked *bangerv1.EventsRequest
	then := time.Date(2024, 5, 6, 7, 8, 9, 123, time.UTC)
	f := &fakeWork{events: func(r *bangerv1.EventsRequest, send func(*bangerv1.JournalEvent) error) error {
		asked = r
		if r.GetVm() == "a" {
			return remoteError(connect.CodeInvalidArgument, "invalid", `"a" is the beginning of more than one id`, "write more")
		}
		for i, e := range []*bangerv1.JournalEvent{
			{Kind: "created", VmId: "aaaa00000001", VmName: "alpha", OperationId: "cc0000000003"},
			{Kind: "stopped", VmId: "aaaa00000001", VmName: "alpha", Detail: "the guest\nsaid\x1b[31m goodbye"},
		} {
			e.Sequence, e.At = int64(i+7), timestamppb.New(then)
			if err := send(e); err != nil {
				return err
			}
		}
		return nil
	}}
	b := newBench(t, &fakeDaemon{extra: f.register})
	at := then.Local().Format(time.DateTime)
	b.run("events", "--vm", "alp", "--after", "6").want(t, 0,
		"NUMBER  TIME                 EVENT     VM                    DETAIL\n"+
			"     7  "+at+"  created   alpha\n"+
			"     8  "+at+"  stopped   alpha                 the guest said?[31m goodbye\n", "")
	if asked.GetVm() != "alp" || asked.GetAfter() != 6 || asked.GetFollow() {
		t.Errorf("asked for %v", asked)
	}
	r := b.run("events", "-f", "-o", "json")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != 2 || !asked.GetFollow() ||
		lines[0] != `{"sequence":7,"at":"2024-05-06T07:08:09.000000123Z","kind":"created","vm":"aaaa00000001","vm_name":"alpha","detail":"","operation":"cc0000000003"}` {
		t.Errorf("%+v", r)
	}
	b.run("events", "--vm", "a").want(t, exitFailed, "", "banger: \"a\" is the beginning of more than one id\n  try: write more\n")
	if r := b.run("events", "--after", "-1"); r.status != exitUsage {
		t.Errorf("%+v", r)
	}
	if r := b.run("events", "-o", "yaml"); r.status != exitUsage {
		t.Errorf("%+v", r)
	}
}
