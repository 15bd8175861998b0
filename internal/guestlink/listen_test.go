package guestlink_test

import (
	"strings"
	"testing"

	"banger/internal/fault"
	"banger/internal/guestproto"
)

func TestHostileListener(t *testing.T) {
	t.Parallel()
	tcp := guestproto.ListenSpec{Network: "tcp", Addr: "127.0.0.1:0"}
	private := guestproto.ListenSpec{Network: "unix"}
	asked := guestproto.ListenSpec{Network: "unix", Addr: "/run/s"}
	for _, tc := range []struct {
		spec guestproto.ListenSpec
		told string
		ok   bool
	}{
		{tcp, `{"addr":"127.0.0.1:80"}`, true},
		{tcp, `{"addr":"[::]:80"}`, true},
		{tcp, ``, false},
		{tcp, `[]`, false},
		{tcp, `{}`, false},
		{tcp, `{"addr":"127.0.0.1:0"}`, false},
		{tcp, `{"addr":"127.0.0.1:65536"}`, false},
		{tcp, `{"addr":"localhost:80"}`, false},
		{tcp, `{"addr":"/run/s"}`, false},
		{private, `{"addr":"/tmp/banger-1/agent.1"}`, true},
		{private, `{"addr":""}`, false},
		{private, `{"addr":"tmp/s"}`, false},
		{private, `{"addr":"/tmp/../etc/s"}`, false},
		{private, `{"addr":"/tmp/a\nb"}`, false},
		{private, `{"addr":"/` + strings.Repeat("a", 107) + `"}`, false},
		{asked, `{"addr":"/run/s"}`, true},
		{asked, `{"addr":"/run/t"}`, false},
	} {
		l, err := saying(guestproto.FrameAnswer, tc.told).Listen(t.Context(), tc.spec)
		if tc.ok != (err == nil) || err != nil && !fault.Is(err, fault.Corrupt) {
			t.Errorf("%+v, told %s: %v", tc.spec, tc.told, err)
		}
		if err == nil {
			l.Close()
		}
	}
	if _, err := saying(guestproto.FrameDone, "").Listen(t.Context(), tcp); !fault.Is(err, fault.Corrupt) {
		t.Errorf("another frame: %v", err)
	}
}

func TestHostileAccept(t *testing.T) {
	t.Parallel()
	const at = `{"addr":"127.0.0.1:80"}`
	for _, told := range []string{`{"number":1,"from":"me"}`, `{"number":-1,"from":"127.0.0.1:1"}`, `{"number":1}`, `x`} {
		l, err := saying(guestproto.FrameAnswer, at, told).Listen(t.Context(), guestproto.ListenSpec{Network: "tcp"})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := l.Accept(); !fault.Is(err, fault.Corrupt) {
			t.Errorf("told %s: %+v, %v", told, a, err)
		}
		l.Close()
	}
	l, err := saying(guestproto.FrameAnswer, at, `{"number":7,"from":"10.0.0.1:5"}`).Listen(t.Context(), guestproto.ListenSpec{Network: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err := l.Accept(); err != nil || a.Number != 7 || a.From != "10.0.0.1:5" {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := l.Accept(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("at the end: %v", err)
	}
	u, err := saying(guestproto.FrameAnswer, `{"addr":"/run/s"}`, `{"number":7,"from":"\u001b[2J"}`).Listen(t.Context(), guestproto.ListenSpec{Network: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if a, err := u.Accept(); err != nil || a.From != "" {
		t.Errorf("%+v, %v", a, err)
	}
}
