package microvm_test

import (
	"encoding/json"
	"testing"
	"time"

	"banger/internal/fault"
	"banger/internal/microvm"
)

func TestParsePublish(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"8080:80": "127.0.0.1:8080:80", "0:80": "127.0.0.1:0:80", "53:53/udp": "127.0.0.1:53:53/udp", "80:80/tcp": "127.0.0.1:80:80",
		"0.0.0.0:8080:80": "0.0.0.0:8080:80", "[::1]:8080:80": "[::1]:8080:80", "10.0.0.1:65535:65535/udp": "10.0.0.1:65535:65535/udp",
		"": "", "80": "", "80:": "", ":80": "", "80:0": "", "x:80": "", "65536:80": "", "-1:80": "", "80:80/sctp": "", "80:80/": "",
		"localhost:80:80": "", "1.2.3:80:80": "", "224.0.0.1:80:80": "", "[fe80::1%eth0]:80:80": "", "80:80:80:80": "",
	} {
		p, err := microvm.ParsePublish(text)
		if want == "" {
			if !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
				t.Errorf("%q: %v, %v", text, p, err)
			}
			continue
		}
		if err != nil || p.String() != want {
			t.Errorf("%q: %q, %v", text, p, err)
		}
		if again, err := microvm.ParsePublish(p.String()); err != nil || again != p {
			t.Errorf("%q is read back as %q, %v", p, again, err)
		}
	}
	if _, err := microvm.ParsePublished([]string{"80:80", "80:81"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a port twice: %v", err)
	}
	if all, err := microvm.ParsePublished([]string{"0:80", "0:80", "80:80", "80:80/udp"}); err != nil || len(all) != 4 {
		t.Errorf("%v, %v", all, err)
	}
}

func FuzzParsePublish(f *testing.F) {
	f.Add("127.0.0.1:80:80/udp")
	f.Add("[::1]:0:1")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := microvm.ParsePublish(text)
		if err != nil {
			return
		}
		if again, err := microvm.ParsePublish(p.String()); err != nil || again != p {
			t.Fatalf("%q: %q is read back as %q, %v", text, p, again, err)
		}
	})
}

// TestOldSpecs wants specifications that earlier versions have written to be read, and the other way round.
func TestOldSpecs(t *testing.T) {
	t.Parallel()
	var s microvm.Spec
	if err := json.Unmarshal([]byte(`{"Image":"i","Net":"user","TTL":3600000000000,"IdleTimeout":60000000000}`), &s); err != nil {
		t.Fatal(err)
	}
	if s.TTL != time.Hour || s.IdleTimeout != time.Minute || s.Publish != nil {
		t.Errorf("%+v", s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var old struct{ TTL, IdleTimeout time.Duration }
	if err := json.Unmarshal(text, &old); err != nil || old.TTL != time.Hour || old.IdleTimeout != time.Minute {
		t.Errorf("%s: %+v, %v", text, old, err)
	}
}
