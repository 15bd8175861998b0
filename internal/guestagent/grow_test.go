package guestagent

import (
	"slices"
	"strings"
	"testing"
)

func TestMountsOf(t *testing.T) {
	t.Parallel()
	const mountinfo = `22 1 0:21 / / rw,noatime - overlay overlay rw,lowerdir=/base
30 22 254:16 /docker /var/lib/docker rw,noatime shared:1 - ext4 /dev/vdb rw
31 22 254:32 / /root rw - ext4 /dev/vdc rw
32 22 254:3 / /mnt rw - ext4 /dev/vda3 rw
33 22 254:16 /a /a\040b\134c rw - ext4 /dev/vdb rw
short 22 254:16
`
	for dev, want := range map[string][]string{
		"254:16": {"/var/lib/docker", `/a b\c`},
		"254:32": {"/root"},
		"254:1":  nil,
	} {
		if got := mountsOf(strings.NewReader(mountinfo), dev); !slices.Equal(got, want) {
			t.Errorf("mountsOf(%s) = %q, want %q", dev, got, want)
		}
	}
}
