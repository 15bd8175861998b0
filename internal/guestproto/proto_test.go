package guestproto_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"banger/internal/guestproto"
)

func TestFrames(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := guestproto.NewWriter(&b)
	long := bytes.Repeat([]byte("x"), 2*guestproto.MaxData+1)
	if n, err := w.Data(guestproto.FrameData, long); n != len(long) || err != nil {
		t.Fatalf("Data = %d, %v", n, err)
	}
	if err := errors.Join(w.Uint32(guestproto.FrameCredit, 1<<31), w.Frame(guestproto.FrameEOF, nil)); err != nil {
		t.Fatal(err)
	}
	// A reader whose every read gives one byte, and an error now and then, sees the same.
	r := guestproto.NewReader(&flaky{r: iotest.OneByteReader(&b)})
	next := func() guestproto.Frame {
		for {
			f, err := r.Next(guestproto.MaxPayload)
			if err == nil {
				return f
			}
			if !errors.Is(err, errFlaky) {
				t.Fatal(err)
			}
		}
	}
	var got []byte
	for len(got) < len(long) {
		got = append(got, next().Payload...)
	}
	if !bytes.Equal(got, long) {
		t.Error("the bytes differ")
	}
	if n, err := next().Uint32(); n != 1<<31 || err != nil {
		t.Errorf("Uint32 = %d, %v", n, err)
	}
	if f := next(); f.Type != guestproto.FrameEOF || len(f.Payload) != 0 {
		t.Errorf("%+v", f)
	}
	if _, err := guestproto.NewReader(&b).Next(1); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

var errFlaky = errors.New("flaky")

// flaky fails every seventh read.
type flaky struct {
	r io.Reader
	n int
}

func (f *flaky) Read(b []byte) (int, error) {
	if f.n++; f.n%7 == 0 {
		return 0, errFlaky
	}
	return f.r.Read(b)
}

func TestFrameLimits(t *testing.T) {
	t.Parallel()
	w := guestproto.NewWriter(io.Discard)
	if err := w.Frame(guestproto.FrameData, make([]byte, guestproto.MaxPayload+1)); !errors.Is(err, guestproto.ErrTooLong) {
		t.Errorf("a long frame = %v", err)
	}
	if err := w.Frame(guestproto.FrameRequest, make([]byte, guestproto.MaxRequest)); err != nil {
		t.Errorf("a long request = %v", err)
	}
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"longer than taken": {"\x04\x00\x00\x80\x01", guestproto.ErrTooLong},
		"cut header":        {"\x04\x00", io.ErrUnexpectedEOF},
		"cut payload":       {"\x04\x00\x00\x00\x05abc", io.ErrUnexpectedEOF},
		"empty":             {"", io.EOF},
	} {
		if _, err := guestproto.NewReader(strings.NewReader(c.in)).Next(guestproto.MaxPayload); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x03abc\x05\x00\x00\x00\x00"))
	f.Add([]byte("\x04\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := guestproto.NewReader(bytes.NewReader(in))
		var out bytes.Buffer
		w := guestproto.NewWriter(&out)
		for {
			frame, err := r.Next(guestproto.MaxPayload)
			if err != nil {
				break
			}
			if err := w.Frame(frame.Type, frame.Payload); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Fatal("what was read is not what was there")
		}
	})
}

var hello = guestproto.Hello{
	Agent: "1", Protocol: guestproto.Version, BootID: "01234567-89ab-cdef-0123-456789abcdef", Kernel: "6", Pid: 1, Init: "agent",
}

func reader(b []byte) *bufio.Reader { return bufio.NewReaderSize(bytes.NewReader(b), 256) }

func TestPreambleIsFoundAmongStaleBytes(t *testing.T) {
	t.Parallel()
	want := guestproto.Preamble{ID: guestproto.SessionID{1, 2, 0xb5, 4}, TimeNS: -5, Entropy: [32]byte{9}}
	good := want.Append(nil)
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1] ^= 1
	for name, stale := range map[string][]byte{
		"none": nil, "magic": []byte("\xb5BANGER\n"), "damaged": damaged, "cut": good[:len(good)-5],
		"first bytes": bytes.Repeat([]byte{0xb5}, 1000), "zeros": make([]byte, 999),
	} {
		r := reader(append(append(bytes.Clone(stale), good...), "rest"...))
		got, err := guestproto.ReadPreamble(r)
		rest, _ := io.ReadAll(r)
		if err != nil || got != want || string(rest) != "rest" {
			t.Errorf("%s: %+v, %v, rest %q", name, got, err, rest)
		}
	}
	if _, err := guestproto.ReadPreamble(reader(damaged)); !errors.Is(err, io.EOF) {
		t.Errorf("a damaged preamble: %v", err)
	}
}

func TestAnswerIsForOneSession(t *testing.T) {
	t.Parallel()
	id, other := guestproto.SessionID{1}, guestproto.SessionID{2}
	mine, err := guestproto.AppendAnswer(nil, id, hello)
	if err != nil {
		t.Fatal(err)
	}
	theirs, _ := guestproto.AppendAnswer(nil, other, hello)
	got, err := guestproto.ReadAnswer(reader(append(bytes.Clone(theirs), mine...)), id)
	if err != nil || got != hello {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := guestproto.ReadAnswer(reader(theirs), id); !errors.Is(err, io.EOF) {
		t.Errorf("another session's answer: %v", err)
	}
	endless := bufio.NewReaderSize(repeat('x'), 4096)
	if _, err := guestproto.ReadAnswer(endless, id); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("endless noise: %v", err)
	}
}

type repeat byte

func (r repeat) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r)
	}
	return len(b), nil
}

func FuzzAnswer(f *testing.F) {
	good, _ := guestproto.AppendAnswer(nil, guestproto.SessionID{}, hello)
	f.Add(good)
	f.Add(append([]byte("\xb5BANGER\n"), good...))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := guestproto.ReadAnswer(reader(in), guestproto.SessionID{})
		if err == nil && (h.Protocol != guestproto.Version || len(h.Agent) > 64 || len(h.BootID) != 36) {
			t.Fatalf("taken: %+v", h)
		}
	})
}

func FuzzPreamble(f *testing.F) {
	f.Add(guestproto.Preamble{TimeNS: 1}.Append(nil))
	f.Fuzz(func(_ *testing.T, in []byte) { _, _ = guestproto.ReadPreamble(reader(in)) })
}

func FuzzMuxConn(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i', 0, 1, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, in []byte) {
		c := guestproto.NewMuxConn(guestproto.HostSide, reader(in), io.Discard, func() error { return nil })
		out, _ := io.ReadAll(c)
		if !bytes.HasPrefix(in, out) {
			t.Fatal("what was read is not what was there")
		}
		for rest := out; len(rest) >= 12; { // only whole frames that a guest may send
			if rest[1] == 2 || rest[3]&1 != 0 {
				t.Fatalf("handed out: %x", rest[:12])
			}
			size := 12
			if rest[1] == 0 {
				size += int(rest[8])<<24 | int(rest[9])<<16 | int(rest[10])<<8 | int(rest[11])
			}
			if size > len(rest) {
				t.Fatal("handed out a part of a frame")
			}
			rest = rest[size:]
		}
	})
}

func TestMuxConnJoinsHeaderAndPayload(t *testing.T) {
	t.Parallel()
	var writes [][]byte
	c := guestproto.NewMuxConn(guestproto.HostSide, reader(nil), writerFunc(func(b []byte) (int, error) {
		writes = append(writes, bytes.Clone(b))
		return len(b), nil
	}), func() error { return nil })
	data := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 12}
	window := []byte{0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0}
	for _, b := range [][]byte{data, data, window, data, window} { // a payload may look like a header
		if n, err := c.Write(b); n != 12 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	want := [][]byte{append(bytes.Clone(data), data...), window, append(bytes.Clone(data), window...)}
	if len(writes) != 3 || !bytes.Equal(bytes.Join(writes, nil), bytes.Join(want, nil)) || len(writes[0]) != 24 {
		t.Errorf("writes %x", writes)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestBootParams(t *testing.T) {
	t.Parallel()
	full := guestproto.BootParams{
		Hostname: "devbox", MachineID: "0123456789abcdef0123456789abcdef", Init: guestproto.InitSystemd,
		Addr: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"),
		DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("fd00::3")}, MTU: 65520, Debug: true,
	}
	const words = "banger.hostname=devbox banger.machine_id=0123456789abcdef0123456789abcdef banger.init=systemd " +
		"banger.addr=10.0.2.15/24 banger.gw=10.0.2.2 banger.dns=10.0.2.3,fd00::3 banger.mtu=65520 banger.debug=1"
	if got := full.Encode(); got != words {
		t.Errorf("Encode = %s", got)
	}
	got, err := guestproto.ParseBoot("console=ttyS0 " + words + " quiet bangers.x=1\n")
	if err != nil || got.Encode() != words {
		t.Errorf("ParseBoot = %+v, %v", got, err)
	}
	if err := full.Validate(); err != nil {
		t.Error(err)
	}
	if empty, err := guestproto.ParseBoot("quiet"); err != nil || empty.Encode() != "" {
		t.Errorf("no words: %+v, %v", empty, err)
	}
	for _, bad := range []string{
		"banger.hostname=", "banger.hostname=a_b", "banger.hostname=-a", "banger.hostname=" + strings.Repeat("a", 64),
		"banger.init=upstart", "banger.addr=10.0.2.15", "banger.addr=10.0.2.15/33", "banger.gw=10.0.2.2",
		"banger.addr=10.0.2.15/24 banger.gw=fd00::1", "banger.dns=", "banger.dns=1.1.1.1,", "banger.dns=fe80::1%eth0",
		"banger.dns=1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4", "banger.mtu=67", "banger.mtu=65536", "banger.mtu=x",
		"banger.debug=2", "banger.unknown=1", "banger.", "banger.mtu=1500 banger.mtu=1500", "banger.machine_id=x",
	} {
		if p, err := guestproto.ParseBoot(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, p)
		}
	}
	for _, name := range []string{"a b", "a banger.mtu=1500", "a\nb"} {
		if err := (guestproto.BootParams{Hostname: name}).Validate(); err == nil {
			t.Errorf("the host name %q is valid", name)
		}
	}
}

func FuzzBootParams(f *testing.F) {
	f.Add("banger.hostname=a banger.addr=10.0.2.15/24 banger.gw=10.0.2.2 banger.dns=::1,1.1.1.1 banger.mtu=1500")
	f.Add("banger.init=auto banger.machine_id=0123456789abcdef0123456789abcdef banger.debug=1")
	f.Fuzz(func(t *testing.T, in string) {
		p, err := guestproto.ParseBoot(in)
		if err != nil {
			return
		}
		again, err := guestproto.ParseBoot(p.Encode())
		if err != nil || again.Encode() != p.Encode() {
			t.Fatalf("%+v, then %+v, %v", p, again, err)
		}
	})
}
