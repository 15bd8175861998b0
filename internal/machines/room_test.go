package machines

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"
)

func TestPoolHasRoom(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	made := time.Now()
	one := func(key string, memory int64) spare { return spare{key: key, template: made, memory: memory} }
	for name, c := range map[string]struct {
		ready  int
		memory int64
		closed bool
		there  []spare
		want   bool
	}{
		"none wanted":                 {0, 1024 * mib, false, nil, false},
		"none there":                  {1, 1024 * mib, false, nil, true},
		"enough there":                {1, 1024 * mib, false, []spare{one("a", mib)}, false},
		"of another template":         {1, 1024 * mib, false, []spare{one("b", mib)}, true},
		"not for one":                 {1, spareEstimate - 1, false, nil, false},
		"another is as the first was": {2, 64 * mib, false, []spare{one("a", 32*mib)}, true},
		"not for another":             {2, 64*mib - 1, false, []spare{one("a", 32*mib)}, false},
		"all templates together":      {1, 200 * mib, false, []spare{one("b", 100*mib)}, false},
		"the daemon ends":             {1, 1024 * mib, true, nil, false},
	} {
		p := newPool(TemplateConfig{Dir: "templates", Ready: c.ready, ReadyMemory: c.memory})
		p.spares, p.closed = c.there, c.closed
		if got := p.room("a"); got != c.want {
			t.Errorf("%s: room is %t", name, got)
		}
	}
	if newPool(TemplateConfig{Ready: 1, ReadyMemory: 1 << 40}).room("a") {
		t.Error("there are spares without templates")
	}
}

func TestPoolTakes(t *testing.T) {
	t.Parallel()
	p := newPool(TemplateConfig{Dir: "templates", Ready: 2})
	old, made := time.Now().Add(-time.Minute), time.Now()
	for _, sp := range []spare{{id: "1", key: "a", template: old}, {id: "2", key: "b", template: made}, {id: "3", key: "a", template: made}} {
		if !p.put(sp) {
			t.Fatal("it is refused")
		}
	}
	if sp, ok := p.take("a", made); !ok || sp.id != "3" {
		t.Errorf("got %+v, %t", sp, ok)
	}
	if sp, ok := p.take("a", made); ok {
		t.Errorf("got %+v of a template that is no more", sp)
	}
	if got := p.takeAll(func(sp spare) bool { return sp.key == "a" }); len(got) != 1 || got[0].id != "1" {
		t.Errorf("got %+v", got)
	}
	p.closed = true
	if _, ok := p.take("b", made); ok || p.put(spare{}) {
		t.Error("it goes on although the daemon ends")
	}
}

func TestSumOfHome(t *testing.T) {
	t.Parallel()
	archive := func(name, content string, mode int64, at time.Time) gathered {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: at})
		if _, werr := w.Write([]byte(content)); err != nil || werr != nil || w.Close() != nil {
			t.Fatal(err, werr)
		}
		return gathered{files: b.Bytes()}
	}
	now := time.Now()
	same := archive("a", "content", 0o600, now).sum()
	if later := archive("a", "content", 0o600, now.Add(time.Hour)).sum(); later != same {
		t.Error("another time makes another sum")
	}
	for name, other := range map[string]gathered{
		"nothing": {}, "name": archive("b", "content", 0o600, now), "content": archive("a", "contend", 0o600, now), "mode": archive("a", "content", 0o644, now),
		"place": {defaults: archive("a", "content", 0o600, now).files},
	} {
		if other.sum() == same {
			t.Errorf("another %s does not make another sum", name)
		}
	}
}

func TestPlenty(t *testing.T) {
	t.Parallel()
	if !plenty(0) || plenty(1<<62) {
		t.Error("what is available is not compared with what the host has")
	}
}
