package qemu

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process's own memory stands for that of QEMU.
func TestCopyMemory(t *testing.T) {
	t.Parallel()
	const pages = scanned + 3*copied // more than is looked at in one go
	page := func(fill byte) []byte { return bytes.Repeat([]byte{fill}, pageSize) }
	written := map[int64][]byte{0: page(1), 1: page(2), 7: page(0), scanned - 1: page(3), scanned: page(4), pages - 1: page(5)}
	for i := range int64(2 * copied) { // a run that is longer than what is copied in one go
		written[100+i] = page(byte(i%255) + 1)
	}
	for _, tt := range []struct {
		name string
		base bool // the memory was mapped from a file that has something in it
	}{{"booted", false}, {"restored", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fd, flags := -1, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS
			want := make([]byte, pages*pageSize)
			file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close() //nolint:errcheck // read back already
			if err := file.Truncate(int64(len(want))); err != nil {
				t.Fatal(err)
			}
			if tt.base {
				base, err := os.Create(filepath.Join(t.TempDir(), "base"))
				if err != nil {
					t.Fatal(err)
				}
				defer base.Close() //nolint:errcheck // only read
				for i := 0; i < len(want); i += 16 * pageSize {
					copy(want[i:], page(0xaa))
				}
				for _, f := range []*os.File{base, file} {
					if _, err := f.WriteAt(want, 0); err != nil {
						t.Fatal(err)
					}
				}
				fd, flags = int(base.Fd()), unix.MAP_PRIVATE
			}
			memory, err := unix.Mmap(fd, 0, len(want), unix.PROT_READ|unix.PROT_WRITE, flags)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(memory) //nolint:errcheck // the process ends soon
			for i, data := range written {
				copy(memory[i*pageSize:], data)
				copy(want[i*pageSize:], data)
			}
			pagemap, err := os.Open("/proc/self/pagemap")
			if err != nil {
				t.Skip("no pagemap: ", err)
			}
			r := &ram{pid: os.Getpid(), address: uint64(uintptr(unsafe.Pointer(&memory[0]))), size: int64(len(want)), pagemap: pagemap}
			defer r.close()
			if err := r.copyTo(t.Context(), file, !tt.base); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the file is not what the memory was")
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			if most := int64(len(written)+64) * pageSize; !tt.base && st.Blocks*512 > most {
				t.Errorf("the file takes %d bytes, want at most %d: zeros are holes", st.Blocks*512, most)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := r.copyTo(ended, file, false); err == nil {
				t.Error("copyTo() goes on after its context has ended")
			}
		})
	}
}
