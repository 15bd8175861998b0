package qemu

import (
	"slices"
	"strings"
	"testing"

	"banger/internal/hypervisor"
)

// option returns the values of every occurrence of an option.
func option(args []string, name string) (values []string) {
	for i, a := range args[:len(args)-1] {
		if a == name {
			values = append(values, args[i+1])
		}
	}
	return values
}

func TestArguments(t *testing.T) {
	t.Parallel()
	m := hypervisor.Machine{
		ID: "0123456789ab", Name: "a,b", VCPUs: 3, Memory: 512 << 20, Kernel: "/k,1", Initramfs: "/i,2", Cmdline: "x=a,b",
		Disks: []hypervisor.Disk{
			{Serial: "base", Path: "/secret,path", ReadOnly: true},
			{Serial: "work", Path: "/w", Durable: true},
		},
		NIC: &hypervisor.NIC{MAC: "02:00:00:00:00:01"},
	}
	args := arguments(Host{Accelerator: TCG, TSCKHz: 5}, m, descriptors{qmp: 3, console: 4, link: 5, nic: 6, disks: []int{7, 8}})
	for name, want := range map[string][]string{
		"-name":   {"guest=banger-0123456789ab-a,,b"},
		"-m":      {"512M"},
		"-smp":    {"3"},
		"-kernel": {"/k,1"}, // not an option list: taken as it is
		"-initrd": {"/i,2"},
		"-append": {"console=ttyS0 quiet loglevel=5 panic=-1 reboot=t cryptomgr.notests tsc_early_khz=5 tsc=reliable x=a,b"},
		"-netdev": {"stream,id=net,server=off,addr.type=fd,addr.str=6"},
		"-add-fd": {"fd=7,set=0", "fd=8,set=1"},
		"-chardev": {
			"socket,id=qmp,fd=3", "socket,id=console,fd=4", "socket,id=link,fd=5",
		},
		"-sandbox": {"on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"},
	} {
		if got := option(args, name); !slices.Equal(got, want) {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	block := option(args, "-blockdev")
	for i, want := range [][]string{
		{"read-only=on", "no-flush=on", "/dev/fdset/0", "discard=unmap"},
		{"read-only=off", "no-flush=off", "/dev/fdset/1", "discard=unmap"},
	} {
		for _, w := range want {
			if !strings.Contains(block[i], w) {
				t.Errorf("disk %d: %q lacks %q", i, block[i], w)
			}
		}
	}
	if strings.Contains(strings.Join(args, " "), "secret") {
		t.Error("QEMU is told the path of a disk")
	}
}

func TestArgumentsOfAccelerators(t *testing.T) {
	t.Parallel()
	for accel, want := range map[Accelerator]struct{ accel, cpu string }{
		KVM: {"kvm", "host"}, TCG: {"tcg,thread=multi,tb-size=256", "max"},
	} {
		args := arguments(Host{Accelerator: accel, TSCKHz: 7}, hypervisor.Machine{}, descriptors{})
		if got := option(args, "-accel"); !slices.Equal(got, []string{want.accel}) {
			t.Errorf("%s: -accel = %q", accel, got)
		}
		if got := option(args, "-cpu"); !slices.Equal(got, []string{want.cpu}) {
			t.Errorf("%s: -cpu = %q", accel, got)
		}
		if got := strings.Contains(option(args, "-append")[0], "tsc_early_khz=7"); got != (accel == TCG) {
			t.Errorf("%s: the TSC's rate is given: %v", accel, got)
		}
		if len(option(args, "-netdev"))+len(option(args, "-blockdev")) != 0 {
			t.Errorf("%s: devices that nobody asked for", accel)
		}
	}
}
