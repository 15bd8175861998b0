//go:build vm

package guestagent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/guestlink"
	"banger/internal/guestproto"
	"banger/internal/hostexec"
)

// Files that the tests of this file boot. They are skipped if one is not set.
const (
	envKernel    = "BANGER_TEST_KERNEL"    // a kernel image
	envInitramfs = "BANGER_TEST_INITRAMFS" // with this package's program as /init and its list of modules
	envBase      = "BANGER_TEST_BASE"      // ext4 image of a Debian root with systemd
)

// guest is a booted VM.
type guest struct {
	vmm     *hostexec.Process
	console *bytes.Buffer
	conn    net.Conn
	session *guestlink.Session
	client  *guestlink.Client
	hello   guestproto.Hello
	took    time.Duration
}

// tscKHz returns the rate of the host's clock, which the guest's kernel can't calibrate reliably under emulation.
func tscKHz(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Skip("no cpuinfo")
	}
	_, after, _ := strings.Cut(string(info), "cpu MHz")
	var mhz float64
	if _, err := fmt.Sscanf(strings.TrimLeft(after, " \t:"), "%f", &mhz); err != nil {
		t.Skip("cpuinfo has no clock rate")
	}
	return fmt.Sprint(int(mhz * 1000))
}

// bootVM boots a VM with disks in dir and waits until it is ready.
func bootVM(t *testing.T, dir string, params guestproto.BootParams) *guest {
	t.Helper()
	g := startVM(t, dir, params)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	begin := time.Now()
	var err error
	g.session, g.hello, err = guestlink.Open(ctx, g.conn)
	g.took = time.Since(begin)
	if err != nil {
		g.vmm.Kill()
		<-g.vmm.Done()
		t.Fatalf("%v\n%s", err, g.console)
	}
	g.client = guestlink.NewClient(g.session)
	return g
}

func startVM(t *testing.T, dir string, params guestproto.BootParams) *guest {
	t.Helper()
	kernel, initramfs, base := os.Getenv(envKernel), os.Getenv(envInitramfs), os.Getenv(envBase)
	qemu, err := hostexec.Look("qemu-system-x86_64", "qemu-system-x86")
	if kernel == "" || initramfs == "" || base == "" || err != nil {
		t.Skip("needs QEMU and the files that are named in ", envKernel, ", ", envInitramfs, ", ", envBase)
	}
	for _, name := range []string{"system.img", "work.img"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := hostexec.Run(t.Context(), hostexec.Cmd{Path: "mkfs.ext4", Args: []string{"-q", path, "1G"}}); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "link")
	_ = os.Remove(socket)
	args := []string{
		"-M", "microvm,acpi=on,rtc=on", "-accel", "tcg,tb-size=64", "-cpu", "max", "-m", "512", "-smp", "1", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 tsc=reliable tsc_early_khz=" + tscKHz(t) + " " + params.Encode(),
		"-serial", "stdio",
		"-device", "virtio-serial-device", "-chardev", "socket,id=link,server=on,wait=off,path=" + socket,
		"-device", "virtserialport,chardev=link,name=" + guestproto.PortName,
		"-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-device,netdev=n0",
	}
	for _, d := range []struct{ serial, path, ro string }{
		{guestproto.DiskWork, filepath.Join(dir, "work.img"), "off"},
		{guestproto.DiskSystem, filepath.Join(dir, "system.img"), "off"},
		{guestproto.DiskBase, base, "on"},
	} {
		args = append(args, "-drive", "if=none,format=raw,id="+d.serial+",file="+d.path+",read-only="+d.ro,
			"-device", "virtio-blk-device,drive="+d.serial+",serial="+d.serial)
	}
	g := &guest{console: &bytes.Buffer{}}
	g.vmm, err = hostexec.Start(hostexec.Cmd{Path: qemu, Args: args, Stdout: g.console, Stderr: g.console})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.vmm.Kill()
		<-g.vmm.Done()
	})
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if g.conn, err = net.Dial("unix", socket); err == nil {
			return g
		}
		if time.Now().After(deadline) {
			t.Fatalf("QEMU did not come up: %v\n%s", err, g.console)
		}
	}
}

// sh runs a shell command in the guest.
func (g *guest) sh(t *testing.T, script string) string {
	t.Helper()
	out, status := run(t, g.client, guestproto.ExecSpec{Args: []string{"sh", "-c", script}}, "")
	if status.Code != 0 {
		t.Errorf("%s: status %d: %s", script, status.Code, out)
	}
	return strings.TrimSpace(out)
}

// end asks the guest to power off and returns its console.
func (g *guest) end(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	begin := time.Now()
	if err := g.client.Shutdown(ctx, guestproto.PowerOff, 0); err != nil {
		t.Error(err)
	}
	select {
	case <-g.vmm.Done():
		t.Logf("powered off in %d ms", time.Since(begin).Milliseconds())
		if err := g.vmm.Err(); err != nil {
			t.Errorf("QEMU: %v", err)
		}
	case <-ctx.Done():
		g.vmm.Kill()
		<-g.vmm.Done()
		t.Errorf("the guest did not power off")
	}
	return g.console.String()
}

var vmParams = guestproto.BootParams{
	Hostname: "unit", MachineID: "0123456789abcdef0123456789abcdef",
	Addr: prefix("10.0.2.15/24"), Gateway: addr("10.0.2.2"), DNS: addrs("10.0.2.3"), MTU: 1400, Debug: true,
}

func TestAgentAsInit(t *testing.T) {
	dir := t.TempDir()
	p := vmParams
	p.Init = guestproto.InitAgent
	g := bootVM(t, dir, p)
	t.Logf("ready after %d ms, guest clock %d ms", g.took.Milliseconds(), g.hello.UptimeNS/1e6)
	if g.hello.Pid != 1 || g.hello.Init != "agent" {
		t.Errorf("hello %+v", g.hello)
	}
	checkGuest(t, g)
	checkBuiltins(t, g)
	// An orphan is reaped, and its status is nobody's.
	g.sh(t, "(sleep 0.1 & ) ; true")
	g.sh(t, "sleep 0.3; ! grep -l '^State:.Z' /proc/[0-9]*/status")
	g.sh(t, "touch /root/kept /etc/kept; mkdir /usr/share/x && mv /usr/share /usr/share2 && mv /usr/share2 /usr/share")
	measure(t, g)
	t.Log(g.end(t))
	for _, disk := range []string{"system.img", "work.img"} {
		out, err := hostexec.Output(t.Context(), hostexec.Cmd{Path: "dumpe2fs", Args: []string{"-h", filepath.Join(dir, disk)}})
		if err != nil || strings.Contains(string(out), "needs_recovery") {
			t.Errorf("%s was not left clean (%v)", disk, err)
		}
	}

	again := bootVM(t, dir, p)
	again.sh(t, "test -f /root/kept -a -f /etc/kept")
	if again.hello.BootID == g.hello.BootID {
		t.Error("a second boot with the first one's boot id")
	}
	again.sh(t, "rm /root/.bashrc") // the seed comes once only
	again.end(t)
	third := bootVM(t, dir, p)
	third.sh(t, "test ! -e /root/.bashrc -a -f /root/kept")
	third.end(t)
}

func checkGuest(t *testing.T, g *guest) {
	t.Helper()
	for script, want := range map[string]string{
		"hostname": "unit", "cat /etc/hostname": "unit", "cat /etc/machine-id": vmParams.MachineID,
		"cat /etc/resolv.conf": "nameserver 10.0.2.3", "cat /sys/class/net/eth0/mtu": "1400",
		"awk '$2==\"00000000\"{print $3}' /proc/net/route": "0202000A",
		"stat -f -c %T /": "overlayfs", "stat -f -c %T /root /var/lib/docker": "ext2/ext3\next2/ext3",
		"ls -A /root | grep -E 'bash|prof|lost'": ".bashrc\n.profile", "stat -c %a /root": "700", "tty": "not a tty",
	} {
		out, _ := run(t, g.client, guestproto.ExecSpec{Args: []string{"sh", "-c", script}}, "")
		if strings.TrimSpace(out) != want {
			t.Errorf("%s: %q, want %q", script, out, want)
		}
	}
	out, _ := run(t, g.client, guestproto.ExecSpec{Args: []string{"tty"}, TTY: true}, "")
	if !strings.HasPrefix(out, "/dev/pts/") {
		t.Errorf("tty: %q", out)
	}
	if got := g.sh(t, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"); !strings.HasPrefix(got, "tsc") {
		t.Errorf("the clocksource is %s", got)
	}
	clock, _ := strconv.ParseInt(g.sh(t, "date +%s"), 10, 64)
	if off := time.Now().Unix() - clock; off < -5 || off > 5 {
		t.Errorf("the guest's clock is off by %d s", off)
	}
	if err := g.client.Configure(t.Context(), guestproto.Identity{Hostname: "other", Entropy: make([]byte, 64), TimeNS: 1e18}); err != nil {
		t.Error(err)
	}
	if got := g.sh(t, "hostname; getent hosts other | cut -c1-9; date +%s | cut -c1-8"); got != "other\n127.0.1.1\n10000000" {
		t.Errorf("after Configure: %q", got)
	}
}

func measure(t *testing.T, g *guest) {
	t.Helper()
	begin := time.Now()
	for range 20 {
		if err := g.client.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ping %.1f ms", float64(time.Since(begin).Microseconds())/20/1000)
	begin = time.Now()
	for range 10 {
		g.sh(t, "true")
	}
	t.Logf("sh -c true %.1f ms", float64(time.Since(begin).Microseconds())/10/1000)
	begin = time.Now()
	g.sh(t, "head -c 64M /dev/zero > /tmp/zero")
	t.Logf("64 MiB made in %d ms", time.Since(begin).Milliseconds())
	begin = time.Now()
	p, err := g.client.Start(t.Context(), guestproto.ExecSpec{Args: []string{"cat", "/tmp/zero"}})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for {
		e, err := p.Recv()
		if err != nil {
			break
		}
		total += len(e.Data)
	}
	t.Logf("guest to host by cat: %.1f MB/s", float64(total)/1e6/time.Since(begin).Seconds())
	begin = time.Now()
	if err := g.client.Get(t.Context(), "/tmp/zero", io.Discard); err != nil {
		t.Fatal(err)
	}
	t.Logf("guest to host by Get: %.1f MB/s", float64(total)/1e6/time.Since(begin).Seconds())
	begin = time.Now()
	if err := g.client.Put(t.Context(), "/tmp/in", oneFile("zero", 64<<20), guestlink.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("host to guest by Put: %.1f MB/s", float64(total)/1e6/time.Since(begin).Seconds())
	t.Log("agent: ", g.sh(t, "grep -E 'VmRSS|RssAnon|Threads' /proc/1/status; free -m | sed -n 2p"))
}

func TestAgentBesideSystemd(t *testing.T) {
	p := vmParams
	p.Init = guestproto.InitAuto
	g := bootVM(t, t.TempDir(), p)
	t.Logf("ready after %d ms, guest clock %d ms", g.took.Milliseconds(), g.hello.UptimeNS/1e6)
	if g.hello.Pid == 1 || g.hello.Init != "systemd" {
		t.Errorf("hello %+v", g.hello)
	}
	begin := time.Now()
	state := ""
	for state != "running" && state != "degraded" && time.Since(begin) < 90*time.Second {
		state, _ = run(t, g.client, guestproto.ExecSpec{Args: []string{"sh", "-c", "systemctl is-system-running --wait 2>/dev/null"}}, "")
		state = strings.TrimSpace(state)
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("systemd is %s, %.1f s after the agent", state, time.Since(begin).Seconds())
	if state != "running" {
		t.Log(g.sh(t, "systemctl --failed --no-pager --plain; systemctl list-jobs --no-pager"))
		t.Error("systemd is not well")
	}
	checkGuest(t, g)
	checkBuiltins(t, g)
	t.Log(g.sh(t, "cat /proc/1/comm; cat /proc/"+fmt.Sprint(g.hello.Pid)+"/cgroup; systemd-analyze | head -2"))
	t.Log(g.end(t))
}

func TestBootFailureIsTold(t *testing.T) {
	p := vmParams
	p.Init = guestproto.InitAgent
	bad := os.Getenv(envBase)
	if bad == "" {
		t.Skip("needs ", envBase)
	}
	empty := filepath.Join(t.TempDir(), "empty.img")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(envBase, empty)
	g := startVM(t, t.TempDir(), p)
	select {
	case <-g.vmm.Done():
	case <-time.After(60 * time.Second):
		g.vmm.Kill()
		<-g.vmm.Done()
		t.Error("the guest hangs")
	}
	if !strings.Contains(g.console.String(), "\nbanger-guest: mount /base: invalid argument") {
		t.Errorf("the console says: %s", g.console)
	}
}

func TestSessionRestartsOnTheSamePort(t *testing.T) {
	dir := t.TempDir()
	p := vmParams
	p.Init = guestproto.InitAgent
	g := bootVM(t, dir, p)
	for range 3 {
		if _, err := g.client.Start(t.Context(), guestproto.ExecSpec{Args: []string{"sh", "-c", "head -c 4M /dev/zero; sleep 1000"}}); err != nil {
			t.Fatal(err)
		}
		_ = g.conn.Close() // in the midst of a session with much under way
		<-g.session.Done()
		var err error
		for range 100 {
			if g.conn, err = net.Dial("unix", filepath.Join(dir, "link")); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		begin := time.Now()
		s, hello, err := guestlink.Open(ctx, g.conn)
		cancel()
		if err != nil {
			t.Fatalf("%v\n%s", err, g.console)
		}
		t.Logf("again after %d ms", time.Since(begin).Milliseconds())
		if hello.BootID != g.hello.BootID {
			t.Error("another boot id")
		}
		g.session, g.client = s, guestlink.NewClient(s)
	}
	// The commands of the dead sessions are hung up, and the agent doesn't spin.
	g.sh(t, "sleep 3; ! grep -l 100[0] /proc/[0-9]*/cmdline")
	ticks := strings.Fields(g.sh(t, "for i in 1 2; do awk '{print $14+$15}' /proc/1/stat; sleep 2; done"))
	const spinning = 40 // ticks in two seconds, of 200; a host under load makes the guest count a few for nothing
	a, _ := strconv.Atoi(ticks[0])
	if b, err := strconv.Atoi(ticks[1]); err != nil || b-a > spinning {
		t.Errorf("the idle agent used the CPU: %v ticks, %v", ticks, err)
	}
	g.end(t)
}
