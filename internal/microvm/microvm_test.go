package microvm_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"banger/internal/fault"
	"banger/internal/microvm"
)

func TestIDs(t *testing.T) {
	t.Parallel()
	a, b := microvm.NewID(), microvm.NewID()
	if a == b || !microvm.IsID(string(a)) || !microvm.IsID(string(b)) {
		t.Errorf("NewID returned %q and %q", a, b)
	}
	for _, s := range []string{"", "0123456789a", "0123456789abc", "0123456789aG", "0123456789AB", "../456789abc", "0123456789a\n"} {
		if microvm.IsID(s) {
			t.Errorf("IsID(%q)", s)
		}
	}
}

func TestValidateName(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"a": true, "7": true, "dev-box": true, "a--b": true, "0123456789ab": true, strings.Repeat("x", 63): true,
		"": false, "-a": false, "a-": false, "-": false, "A": false, "a b": false, "a.b": false, "a_b": false, "ä": false,
		"../x": false, "a\n": false, "a\x00": false, strings.Repeat("x", 64): false,
	} {
		if err := microvm.ValidateName(name); (err == nil) != ok {
			t.Errorf("ValidateName(%q) = %v, want ok = %t", name, err, ok)
		} else if err != nil && (!fault.Is(err, fault.Invalid) || fault.HintOf(err) == "") {
			t.Errorf("ValidateName(%q) = %v: not Invalid with a hint", name, err)
		}
	}
	if err := microvm.ValidateName(strings.Repeat("é", 10_000)); len(err.Error()) > 500 {
		t.Errorf("the error for a long name has %d bytes", len(err.Error()))
	}
}

func FuzzValidateName(f *testing.F) {
	for _, s := range []string{"a", "dev-box", "-", "", "ü", "\xff", strings.Repeat("a", 100)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := microvm.ValidateName(name)
		legal := len(name) >= 1 && len(name) <= 63 && strings.Trim(name, "-") != "" &&
			!strings.HasPrefix(name, "-") && !strings.HasSuffix(name, "-") &&
			strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
		if (err == nil) != legal {
			t.Errorf("ValidateName(%q) = %v", name, err)
		}
		if err != nil && !utf8.ValidString(err.Error()) {
			t.Errorf("the error for %q is not text", name)
		}
	})
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096B": 4096, "1k": 1 << 10, "1KB": 1 << 10, "2KiB": 2 << 10, "512M": 512 << 20, "512mib": 512 << 20,
		"4G": 4 << 30, "4GiB": 4 << 30, "1T": 1 << 40, "8388607TiB": 8388607 << 40, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := microvm.ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "M", "-1", "+1", "1.5G", "1 G", "G1", "1GG", "1iB", "1Gi", "1MGB", "0x10", "1_000", "1P", "9223372036854775808", "8388608T",
		"9007199254740992K", strings.Repeat("9", 1000),
	} {
		if got, err := microvm.ParseSize(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseSize(%q) = %d, %v; want Invalid", text, got, err)
		}
	}
}

func FuzzSizes(f *testing.F) {
	for _, s := range []string{"0", "1", "1023", "1K", "512MiB", "4G", "1T", "-0", "8388608T", "9223372036854775807", "KiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := microvm.ParseSize(text)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("ParseSize(%q) = %d", text, n)
		}
		if again, err := microvm.ParseSize(microvm.FormatSize(n)); err != nil || again != n {
			t.Errorf("%q is %d, written %q, read again %d, %v", text, n, microvm.FormatSize(n), again, err)
		}
	})
}

func TestFormatSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0", 1: "1", 1023: "1023", 1024: "1KiB", 1025: "1025", 512 << 20: "512MiB", 1 << 30: "1GiB", 3 << 29: "1536MiB", 1 << 40: "1TiB", -1024: "-1024",
	} {
		if got := microvm.FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func validSpec() microvm.Spec {
	return microvm.Spec{
		Image: "i", Kernel: "k", VCPUs: 1, Memory: 256 << 20, DiskSize: 1 << 30, Init: microvm.InitAuto, Net: microvm.NetUser, Backend: "auto",
	}
}

func TestValidateSpec(t *testing.T) {
	t.Parallel()
	if err := validSpec().Validate(); err != nil {
		t.Fatalf("a valid spec is refused: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*microvm.Spec)
		ok     bool
	}{
		"no vCPU":          {func(s *microvm.Spec) { s.VCPUs = 0 }, false},
		"most vCPUs":       {func(s *microvm.Spec) { s.VCPUs = microvm.MaxVCPUs }, true},
		"too many vCPUs":   {func(s *microvm.Spec) { s.VCPUs = microvm.MaxVCPUs + 1 }, false},
		"least memory":     {func(s *microvm.Spec) { s.Memory = microvm.MinMemory }, true},
		"too little":       {func(s *microvm.Spec) { s.Memory = microvm.MinMemory - 1<<20 }, false},
		"negative memory":  {func(s *microvm.Spec) { s.Memory = -1 }, false},
		"too much memory":  {func(s *microvm.Spec) { s.Memory = microvm.MaxMemory + 1<<20 }, false},
		"odd memory":       {func(s *microvm.Spec) { s.Memory++ }, false},
		"least disk":       {func(s *microvm.Spec) { s.DiskSize = microvm.MinDiskSize }, true},
		"small disk":       {func(s *microvm.Spec) { s.DiskSize = microvm.MinDiskSize - 4096 }, false},
		"huge disk":        {func(s *microvm.Spec) { s.DiskSize = microvm.MaxDiskSize + 4096 }, false},
		"odd disk":         {func(s *microvm.Spec) { s.DiskSize += 512 }, false},
		"systemd":          {func(s *microvm.Spec) { s.Init = microvm.InitSystemd }, true},
		"unknown init":     {func(s *microvm.Spec) { s.Init = "upstart" }, false},
		"no network":       {func(s *microvm.Spec) { s.Net = microvm.NetNone }, true},
		"unknown network":  {func(s *microvm.Spec) { s.Net = "" }, false},
		"no image's name":  {func(s *microvm.Spec) { s.Image = "" }, false},
		"no kernel's name": {func(s *microvm.Spec) { s.Kernel = "" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := validSpec()
			c.change(&s)
			if err := s.Validate(); (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("Validate = %v, want ok = %t", err, c.ok)
			}
		})
	}
}

// TestStates walks the whole table.
func TestStates(t *testing.T) {
	t.Parallel()
	followers := func(s microvm.State) (out []microvm.State) {
		for _, n := range microvm.States() {
			if s.MayBecome(n) {
				out = append(out, n)
			}
		}
		return out
	}
	reached := map[microvm.State]bool{microvm.Creating: true}
	for queue := []microvm.State{microvm.Creating}; len(queue) > 0; queue = queue[1:] {
		for _, n := range followers(queue[0]) {
			if !reached[n] {
				reached[n] = true
				queue = append(queue, n)
			}
		}
	}
	for _, s := range microvm.States() {
		if !reached[s] {
			t.Errorf("%s cannot be reached", s)
		}
		if s.MayBecome(s) {
			t.Errorf("%s may follow itself", s)
		}
		if s.MayBecome(microvm.Creating) {
			t.Errorf("%s may become creating", s)
		}
		if n := followers(s); (s == microvm.Deleting) != (len(n) == 0) {
			t.Errorf("%s may become %v", s, n)
		}
		// What may have a process can end by itself at any time, and is never deleted before it has ended.
		if s.HasProcess() && (!s.MayBecome(microvm.Stopped) || s.MayBecome(microvm.Deleting)) {
			t.Errorf("%s has a process and may become %v", s, followers(s))
		}
		if !s.HasProcess() && s != microvm.Deleting && !s.MayBecome(microvm.Deleting) {
			t.Errorf("%s has no process and cannot be deleted", s)
		}
		if s.Live() && !s.HasProcess() {
			t.Errorf("%s is live and has no process", s)
		}
		if s.Live() != s.MayBecome(microvm.Stopping) {
			t.Errorf("%s: live is %t, and it may become %v", s, s.Live(), followers(s))
		}
	}
	if s := microvm.State("bogus"); s.HasProcess() || s.Live() || s.MayBecome(microvm.Stopped) {
		t.Error("an unknown state has a process or a future")
	}
	if got := len(microvm.States()); got != len(reached) {
		t.Errorf("%d states are listed, %d are in the table: %v", got, len(reached), slices.Collect(maps.Keys(reached)))
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	vms := []microvm.VM{
		{ID: "aaaaaaaaaaaa", Name: "one", State: microvm.Running},
		{ID: "aaaaaaaabbbb", Name: "two", State: microvm.Stopped},
		{ID: "bbbbbbbbbbbb", Name: "gone", State: microvm.Deleting},
		{ID: "cccccccccccc", Name: "gone", State: microvm.Stopped},
		{ID: "dddddddddddd", Name: "aaaaaaaaaaaa", State: microvm.Stopped}, // named like the first one's id
		{ID: "eeeeeeeeeeee", Name: "b", State: microvm.Stopped},
		{ID: "ffffffffffff", Name: "leaving", State: microvm.Deleting},
	}
	for ref, want := range map[string]string{
		"one":          "aaaaaaaaaaaa",
		"aaaaaaaabbbb": "aaaaaaaabbbb",
		"aaaaaaaab":    "aaaaaaaabbbb",
		"aaaaaaaaaaaa": "dddddddddddd", // a name goes before an id
		"gone":         "cccccccccccc", // who is on the way out holds its name no more
		"b":            "eeeeeeeeeeee", // a name goes before a prefix
		"bb":           "bbbbbbbbbbbb", // but can still be reached by its id
		"dddddddddddd": "dddddddddddd",
	} {
		if got, err := microvm.Resolve(vms, ref); err != nil || string(got.ID) != want {
			t.Errorf("Resolve(%q) = %s, %v; want %s", ref, got.ID, err, want)
		}
	}
	for ref, want := range map[string]struct {
		kind fault.Kind
		says string
	}{
		"":                       {fault.Invalid, "no VM named"},
		"aaaa":                   {fault.Invalid, "one, two"},
		"x":                      {fault.NotFound, `"x"`},
		"leaving":                {fault.NotFound, "leaving"},
		"aaaaaaaaaaaaa":          {fault.NotFound, ""},
		strings.Repeat("z", 999): {fault.NotFound, "zzz..."},
	} {
		_, err := microvm.Resolve(vms, ref)
		if !fault.Is(err, want.kind) || !strings.Contains(err.Error(), want.says) || fault.HintOf(err) == "" {
			t.Errorf("Resolve(%q): %v (hint %q), want %v", ref, err, fault.HintOf(err), want.kind)
		}
	}
}
