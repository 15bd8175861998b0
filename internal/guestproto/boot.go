package guestproto

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Init says what process 1 of the guest is.
type Init string

// The init modes.
const (
	InitAuto    Init = "auto"    // systemd if that is the image's init, else the agent
	InitAgent   Init = "agent"   // the agent stays process 1
	InitSystemd Init = "systemd" // the image's /sbin/init, with the agent beside it
)

// BootParams is what the host tells the guest's init on the kernel command line. The zero value of a field leaves it out.
type BootParams struct {
	Hostname  string
	MachineID string // 32 hexadecimal digits; written to /etc/machine-id before the image's init starts
	Init      Init   // empty: auto
	Addr      netip.Prefix
	Gateway   netip.Addr
	DNS       []netip.Addr
	MTU       int
	Debug     bool // print how long the stages of the boot take
}

// The words, without their prefix.
const (
	bootPrefix   = "banger."
	keyHostname  = "hostname"
	keyMachineID = "machine_id"
	keyInit      = "init"
	keyAddr      = "addr"
	keyGateway   = "gw"
	keyDNS       = "dns"
	keyMTU       = "mtu"
	keyDebug     = "debug"
)

// maxDNS is how many name servers resolv.conf(5) takes.
const maxDNS = 3

// Encode returns the words for the kernel command line, separated by spaces. ParseBoot is its inverse.
func (p BootParams) Encode() string {
	var words []string
	add := func(key, value string) {
		if value != "" {
			words = append(words, bootPrefix+key+"="+value)
		}
	}
	add(keyHostname, p.Hostname)
	add(keyMachineID, p.MachineID)
	add(keyInit, string(p.Init))
	if p.Addr.IsValid() {
		add(keyAddr, p.Addr.String())
	}
	if p.Gateway.IsValid() {
		add(keyGateway, p.Gateway.String())
	}
	dns := make([]string, len(p.DNS))
	for i, a := range p.DNS {
		dns[i] = a.String()
	}
	add(keyDNS, strings.Join(dns, ","))
	if p.MTU != 0 {
		add(keyMTU, strconv.Itoa(p.MTU))
	}
	if p.Debug {
		add(keyDebug, "1")
	}
	return strings.Join(words, " ")
}

// Validate checks every field.
func (p BootParams) Validate() error {
	got, err := ParseBoot(p.Encode())
	if err == nil && (got.Hostname != p.Hostname || got.MachineID != p.MachineID || got.Init != p.Init) {
		err = errors.New("kernel command line: a value holds a space")
	}
	return err
}

// ParseBoot reads the words that begin with "banger." from a kernel command line and ignores all others. An unknown or
// repeated word, or a bad value, is an error.
func ParseBoot(cmdline string) (BootParams, error) {
	var p BootParams
	seen := map[string]bool{}
	for word := range strings.FieldsSeq(cmdline) {
		rest, ours := strings.CutPrefix(word, bootPrefix)
		if !ours {
			continue
		}
		key, value, _ := strings.Cut(rest, "=")
		if seen[key] {
			return BootParams{}, fmt.Errorf("kernel command line: %s%s occurs twice", bootPrefix, key)
		}
		seen[key] = true
		if err := p.set(key, value); err != nil {
			return BootParams{}, fmt.Errorf("kernel command line: %q: %w", word, err)
		}
	}
	if p.Gateway.IsValid() && (!p.Addr.IsValid() || p.Gateway.Is4() != p.Addr.Addr().Is4()) {
		return BootParams{}, errors.New("kernel command line: a gateway without an address of its family")
	}
	return p, nil
}

func (p *BootParams) set(key, value string) (err error) {
	switch key {
	case keyHostname:
		p.Hostname, err = value, CheckHostname(value)
	case keyMachineID:
		p.MachineID, err = value, CheckMachineID(value)
	case keyInit:
		p.Init = Init(value)
		if p.Init != InitAuto && p.Init != InitAgent && p.Init != InitSystemd {
			err = errors.New("not auto, agent or systemd")
		}
	case keyAddr:
		if p.Addr, err = netip.ParsePrefix(value); err == nil {
			err = checkAddr(p.Addr.Addr())
		}
	case keyGateway:
		p.Gateway, err = parseAddr(value)
	case keyDNS:
		list := strings.Split(value, ",")
		if len(list) > maxDNS {
			return fmt.Errorf("more than %d name servers", maxDNS)
		}
		for _, text := range list {
			a, err := parseAddr(text)
			if err != nil {
				return err
			}
			p.DNS = append(p.DNS, a)
		}
	case keyMTU:
		// 68 is the least that IPv4 allows (RFC 791), 65535 the most a virtio-net device takes.
		if p.MTU, err = strconv.Atoi(value); err == nil && (p.MTU < 68 || p.MTU > 65535) {
			err = errors.New("not between 68 and 65535")
		}
	case keyDebug:
		if p.Debug = value == "1"; !p.Debug {
			err = errors.New("not 1")
		}
	default:
		err = errors.New("unknown word")
	}
	return err
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, err
	}
	return a, checkAddr(a)
}

func checkAddr(a netip.Addr) error {
	if a.Zone() != "" || a.Is4In6() {
		return errors.New("an address with a zone, or IPv4 in IPv6")
	}
	return nil
}

// CheckHostname refuses what is not one DNS label: 1 to 63 letters, digits and hyphens, no hyphen at an edge (RFC 1123).
func CheckHostname(s string) error {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return errors.New("bad host name")
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return errors.New("bad host name")
		}
	}
	return nil
}

// CheckBootID refuses what is not a UUID of lower-case digits, as the kernel makes boot ids.
func CheckBootID(s string) error {
	if !isUUID(s) {
		return errors.New("bad boot id")
	}
	return nil
}

// CheckMachineID refuses what is not 32 lower-case hexadecimal digits (machine-id(5)).
func CheckMachineID(s string) error {
	ok := len(s) == 32 && strings.Trim(s, "0") != ""
	for i := range len(s) {
		ok = ok && isHex(s[i])
	}
	if !ok {
		return errors.New("bad machine id")
	}
	return nil
}
