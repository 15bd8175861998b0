package machines

import (
	"reflect"
	"slices"
	"testing"

	"banger/internal/fault"
	"banger/internal/guestproto"
	"banger/internal/microvm"
)

func TestStopSignal(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"": 15, "SIGTERM": 15, "TERM": 15, "sigquit": 3, "9": 9, "SIGRTMIN+3": 37, "RTMIN": 34, "SIGRTMAX-1": 63,
		"SIGNONSENSE": 0, "0": 0, "65": 0, "-1": 0, "SIGRTMIN+99": 0, "SIGRTMIN+x": 0, "SIG": 0,
	} {
		got, err := stopSignal(text)
		if got != want || (err == nil) != (want != 0) || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestSuits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spec  microvm.Spec
		image Image
		kind  fault.Kind
		ok    bool
	}{
		{"anything", microvm.Spec{Init: microvm.InitAuto}, Image{}, 0, true},
		{"systemd that is there", microvm.Spec{Init: microvm.InitSystemd}, Image{HasSystemd: true}, 0, true},
		{"systemd that is not", microvm.Spec{Init: microvm.InitSystemd}, Image{}, fault.Precondition, false},
		{"bad stop signal", microvm.Spec{}, Image{Config: microvm.ImageConfig{StopSignal: "SIGX"}}, fault.Invalid, false},
	} {
		if err := suits(c.spec, c.image); (err == nil) != c.ok || err != nil && !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestMainProcessOfImage(t *testing.T) {
	t.Parallel()
	server := microvm.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}}
	for _, c := range []struct {
		name  string
		main  *microvm.Process
		image microvm.ImageConfig
		want  *microvm.Process
		init  guestproto.Init
	}{
		{"not asked for", nil, server, nil, guestproto.InitAuto},
		{"the image's", &microvm.Process{User: "u"}, server, &microvm.Process{Args: []string{"/entry", "serve"}, User: "u"}, guestproto.InitAgent},
		{"its own", &microvm.Process{Args: []string{"x"}}, server, &microvm.Process{Args: []string{"x"}}, guestproto.InitAgent},
		{"a shell is none", &microvm.Process{}, microvm.ImageConfig{Cmd: []string{"bash"}}, nil, guestproto.InitAuto},
		{"an image without", &microvm.Process{}, microvm.ImageConfig{}, nil, guestproto.InitAuto},
	} {
		spec := withImage(microvm.Spec{Init: microvm.InitAuto, Main: c.main}, Image{Config: c.image})
		if !reflect.DeepEqual(spec.Main, c.want) || !reflect.DeepEqual(spec.ImageConfig, c.image) || initOf(spec) != c.init {
			t.Errorf("%s: %+v, init %s", c.name, spec.Main, initOf(spec))
		}
	}
	if got := initOf(microvm.Spec{Init: microvm.InitSystemd, Main: &microvm.Process{}}); got != guestproto.InitSystemd {
		t.Errorf("systemd that was asked for: %s", got)
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	image := microvm.ImageConfig{Env: []string{"A=image", "B=image"}, Dir: "/srv", User: "app"}
	got := Command(image, guestproto.ExecSpec{Env: []string{"A=own"}})
	if got.User != "app" || got.Dir != "/srv" || !got.MakeDir || !slices.Equal(got.Env, []string{"A=image", "B=image", "A=own"}) {
		t.Errorf("completed: %+v", got)
	}
	got = Command(image, guestproto.ExecSpec{User: "root", Dir: "/tmp"})
	if got.User != "root" || got.Dir != "/tmp" || got.MakeDir {
		t.Errorf("given: %+v", got)
	}
	if got := Command(microvm.ImageConfig{}, guestproto.ExecSpec{}); got.MakeDir || got.User != "" || got.Env != nil {
		t.Errorf("an image that says nothing: %+v", got)
	}
}
