package kernelimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/fault"
)

// bzImage makes a kernel image around a payload.
func bzImage(payload []byte) []byte {
	image := make([]byte, 0x400)
	image[offSetupSects] = 1
	copy(image[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offProtocol:], 0x20f)
	binary.LittleEndian.PutUint16(image[offVersion:], 0x100)
	copy(image[0x300:], "6.1.0-1-test (builder@host) #1 SMP\x00")
	binary.LittleEndian.PutUint32(image[offPayload:], 16)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], uint32(len(payload)))
	return append(append(append(image, make([]byte, 16)...), payload...), "trailing"...)
}

func sized(packed []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(size))
}

// fixture is a piece of pseudo code packed as the kernel's build does it (the programs gzip, xz, lzma, bzip2, lz4 and zstd
// with the options of scripts/Makefile.lib).
func fixture(tb testing.TB, suffix string) []byte {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "kernel"+suffix))
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	kernel := fixture(t, "")
	for _, method := range []string{".xz", ".lzma", ".bz2", ".lz4", ".zst"} {
		packed := fixture(t, method)
		if got, err := Unpack(bzImage(sized(packed, len(kernel)))); err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, %v", method, len(got), err)
		}
		// What says more or less than there is, is damaged; so is what ends early.
		for _, size := range []int{len(kernel) - 1, len(kernel) + 1, 1 << 31} {
			if _, err := Unpack(bzImage(sized(packed, size))); err == nil {
				t.Errorf("%s: accepted a size of %d", method, size)
			}
		}
		if _, err := Unpack(bzImage(sized(packed[:len(packed)/2], len(kernel)))); err == nil {
			t.Errorf("%s: accepted half a payload", method)
		}
	}
	for name, packed := range map[string][]byte{"plain": kernel, "gzip": fixture(t, ".gz")} {
		if got, err := Unpack(bzImage(packed)); err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	var text bytes.Buffer
	w := gzip.NewWriter(&text)
	_, _ = w.Write([]byte("only a text"))
	_ = w.Close()
	dict := fixture(t, ".lzma")
	binary.LittleEndian.PutUint32(dict[1:], 1<<31)
	for name, bad := range map[string][]byte{
		"empty": nil, "no magic": make([]byte, 0x400), "cut": bzImage(kernel)[:0x420], "unknown": bzImage([]byte("what is this?")),
		"not ELF": bzImage(text.Bytes()), "LZO": bzImage([]byte("\x89LZO\x00\r\n\x1a\n")), "huge dictionary": bzImage(sized(dict, len(kernel))),
	} {
		if _, err := Unpack(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// elfFile makes an ELF file for x86-64 with one segment of notes, followed by text.
func elfFile(notes []byte, text string) []byte {
	le := binary.LittleEndian
	f := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 64+56-7)...)
	le.PutUint16(f[16:], 2)  // executable
	le.PutUint16(f[18:], 62) // x86-64
	le.PutUint32(f[20:], 1)
	le.PutUint64(f[32:], 64) // program headers
	le.PutUint16(f[52:], 64)
	le.PutUint16(f[54:], 56)
	le.PutUint16(f[56:], 1)
	le.PutUint32(f[64:], 4) // PT_NOTE
	le.PutUint64(f[64+8:], 64+56)
	le.PutUint64(f[64+32:], uint64(len(notes)))
	return append(append(f, notes...), text...)
}

func note(owner string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	n := le.AppendUint32(nil, uint32(len(owner)+1))
	n = le.AppendUint32(n, uint32(len(desc)))
	n = le.AppendUint32(n, kind)
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	return append(append(n, pad(append([]byte(owner), 0))...), pad(desc)...)
}

func TestELF(t *testing.T) {
	t.Parallel()
	var config bytes.Buffer
	config.WriteString("IKCFG_ST")
	w := gzip.NewWriter(&config)
	_, _ = w.Write([]byte("# a comment\nCONFIG_PVH=y\n# CONFIG_KVM is not set\nCONFIG_HZ=250\n"))
	_ = w.Close()
	config.WriteString("IKCFG_ED")
	pvh := note("Xen", 18, make([]byte, 8))
	for _, tc := range []struct {
		name  string
		notes []byte
		want  bool
	}{
		{"alone", pvh, true},
		{"after others", append(note("Linux", 0, []byte("odd")), pvh...), true},
		{"another type", note("Xen", 5, nil), false},
		{"another owner", note("GNU", 18, nil), false},
		{"none", nil, false},
		{"lying length", []byte("\xff\xff\xff\xff\xff\xff\xff\xff\x12\x00\x00\x00Xen\x00"), false},
	} {
		if got := HasPVH(bytes.NewReader(elfFile(tc.notes, ""))); got != tc.want {
			t.Errorf("%s: PVH %v", tc.name, got)
		}
	}
	// Formats of printk stand beside the banner; texts across the boundaries of what is read at once are found as well.
	for _, far := range []int{0, 1<<20 - 5, 1<<20 + 77} {
		f := elfFile(pvh, string(make([]byte, far))+"Linux version %s (%s)\x00Linux version 6.1.0-1-test (x) #1\x00"+config.String())
		r, size := bytes.NewReader(f), int64(len(f))
		if kind, err := Identify(r); kind != ELF || err != nil {
			t.Fatalf("identified as %q, %v", kind, err)
		}
		if got := Release(ELF, r, size); got != "6.1.0-1-test" {
			t.Errorf("release %q", got)
		}
		c := ParseConfig(EmbeddedConfig(r, size))
		if c["PVH"] != "y" || c["HZ"] != "250" || c["KVM"] != "" || len(c) != 2 {
			t.Errorf("config %v", c)
		}
	}
	f := elfFile(nil, "IKCFG_ST\x1f\x8bnot gzip")
	if c := EmbeddedConfig(bytes.NewReader(f), int64(len(f))); c != nil {
		t.Errorf("config of nothing: %q", c)
	}
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	arm := elfFile(nil, "")
	arm[18] = 183
	module := elfFile(nil, "")
	module[16] = 1
	image := bzImage(fixture(t, ""))
	if kind, err := Identify(bytes.NewReader(image)); kind != BzImage || err != nil {
		t.Errorf("bzImage: %q, %v", kind, err)
	}
	if got := Release(BzImage, bytes.NewReader(image), int64(len(image))); got != "6.1.0-1-test" {
		t.Errorf("release %q", got)
	}
	for name, tc := range map[string]struct {
		data []byte
		kind fault.Kind
	}{
		"nothing": {nil, fault.Invalid}, "text": {[]byte("hello"), fault.Invalid}, "short ELF": {[]byte("\x7fELF"), fault.Invalid},
		"arm64": {arm, fault.Unsupported}, "module": {module, fault.Invalid}, "zeros": {make([]byte, 1<<16), fault.Invalid},
	} {
		if _, err := Identify(bytes.NewReader(tc.data)); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValidRelease(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"6.1.0-41-cloud-amd64": true, "6.8.5-301.fc40.x86_64": true, "6.12.0-rc1+": true, "": false, "..": false, "6/1": false, "v6": false,
	} {
		if ValidRelease(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func FuzzImage(f *testing.F) {
	kernel := fixture(f, "")
	for _, method := range []string{".xz", ".lzma", ".bz2", ".lz4", ".zst", ".gz"} {
		f.Add(bzImage(sized(fixture(f, method), len(kernel))))
	}
	f.Add(bzImage(kernel))
	f.Add(elfFile(note("Xen", 18, make([]byte, 8)), "Linux version 6.1.0-1-test (x)"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := payload(data); err == nil && binary.LittleEndian.Uint32(p[len(p)-4:]) > 1<<16 {
			t.Skip("within the bounds, but slow")
		}
		r, size := bytes.NewReader(data), int64(len(data))
		kind, err := Identify(r)
		if err != nil {
			return
		}
		if release := Release(kind, r, size); release != "" && !ValidRelease(release) {
			t.Errorf("release %q", release)
		}
		if kind == ELF {
			HasPVH(r)
			ParseConfig(EmbeddedConfig(r, size))
		} else if got, err := Unpack(data); err == nil && !bytes.HasPrefix(got, []byte("\x7fELF")) {
			t.Error("not an ELF file")
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for name := range ParseConfig(text) {
			if name == "" {
				t.Error("an option without a name")
			}
		}
	})
}
