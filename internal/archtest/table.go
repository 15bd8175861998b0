package archtest

// layer is where a package stands. Imports point down.
type layer int

// The layers, lowest first.
const (
	vocabulary layer = iota // words that everybody may use; no I/O
	mechanism               // does one thing to the world and decides nothing
	service                 // decides; sees mechanisms, never another service
	translator              // between the API's messages and the program's values
	root                    // wires all of it together; imported by main only
)

// entry is what the table says about one package.
type entry struct {
	layer layer
	// may lists the packages it may import besides the vocabulary. A package of the vocabulary imports only what is
	// listed.
	may []string
}

// generated is the code made from the proto files; any package under it counts as it.
const generated = "gen"

// table says which package under internal may import which. A new package gets a line here; if no layer fits it, it is
// probably two packages. What is not listed is forbidden.
func table() map[string]entry {
	return map[string]entry{
		"fault":    {layer: vocabulary},
		"microvm":  {layer: vocabulary, may: []string{"fault"}},
		"progress": {layer: vocabulary},
		"version":  {layer: vocabulary},

		"archtest":                        {layer: mechanism},
		"backends":                        {layer: mechanism, may: []string{"hypervisor", "hypervisor/fakevmm", "hypervisor/firecracker", "hypervisor/qemu"}},
		"cgroup":                          {layer: mechanism},
		"config":                          {layer: mechanism},
		"debian":                          {layer: mechanism, may: []string{"hostexec"}},
		"depot":                           {layer: mechanism},
		"diskcopy":                        {layer: mechanism},
		"ext4":                            {layer: mechanism},
		"filetar":                         {layer: mechanism},
		generated:                         {layer: mechanism},
		"gitsync":                         {layer: mechanism, may: []string{"hostexec"}},
		"guestlink":                       {layer: mechanism, may: []string{"guestproto"}},
		"guestproto":                      {layer: mechanism},
		"homefiles":                       {layer: mechanism, may: []string{"config", "hostexec"}},
		"hostexec":                        {layer: mechanism},
		"hostnet":                         {layer: mechanism, may: []string{"hostexec"}},
		"hypervisor":                      {layer: mechanism},
		"hypervisor/fakevmm":              {layer: mechanism, may: []string{"hypervisor", "hostexec"}},
		"hypervisor/firecracker":          {layer: mechanism, may: []string{"hypervisor", "hostexec"}},
		"hypervisor/hypervisortest":       {layer: mechanism, may: []string{"hypervisor", "hostexec"}},
		"hypervisor/hypervisortest/guest": {layer: mechanism},
		"hypervisor/qemu":                 {layer: mechanism, may: []string{"diskcopy", "hypervisor", "hostexec"}},
		"initramfs":                       {layer: mechanism, may: []string{"hostexec", "kmod"}},
		"journal":                         {layer: mechanism},
		"kernelimage":                     {layer: mechanism},
		"kmod":                            {layer: mechanism},
		"monitorlink":                     {layer: mechanism, may: []string{"cgroup", "hostexec", "hypervisor"}},
		"oci":                             {layer: mechanism},
		"operations":                      {layer: mechanism},
		"packages":                        {layer: mechanism},
		"overlay":                         {layer: mechanism, may: []string{"ext4"}},
		"relay":                           {layer: mechanism},
		"rootfs":                          {layer: mechanism, may: []string{"hostexec"}},
		"store":                           {layer: mechanism, may: []string{"journal"}},
		"sshclient":                       {layer: mechanism},
		"sshserver":                       {layer: mechanism, may: []string{"guestproto"}},
		"usernet":                         {layer: mechanism},

		"images": {layer: service, may: []string{"config", "debian", "depot", "hostexec", "rootfs", "oci", "ext4", "overlay", "store"}},
		"kernels": {layer: service, may: []string{
			"config", "debian", "depot", "hostexec", "rootfs", "initramfs", "kernelimage", "kmod", "packages", "store",
		}},
		"machines": {layer: service, may: []string{
			"cgroup", "config", "diskcopy", "guestlink", "guestproto", "hypervisor", "initramfs", "journal", "monitorlink", "rootfs", "store",
		}},
		"workspaces": {layer: service, may: []string{"config", "filetar", "gitsync", "guestlink", "guestproto", "store"}},

		"rpcapi": {layer: translator, may: []string{
			generated, "config", "guestlink", "guestproto", "hypervisor", "images", "journal", "kernels", "machines", "monitorlink",
			"operations", "store", "workspaces",
		}},
		"rpcclient": {layer: translator, may: []string{generated, "config", "hostexec"}},

		"cli": {layer: root, may: []string{generated, "config", "filetar", "gitsync", "hostexec", "relay", "rpcclient", "sshclient", "sshserver"}},
		"daemon": {layer: root, may: []string{
			generated, "backends", "cgroup", "config", "debian", "depot", "gitsync", "guestlink", "homefiles", "hostexec", "ext4", "hypervisor", "images", "initramfs",
			"journal", "kernels", "machines", "monitorlink", "oci", "operations", "rootfs", "rpcapi", "store", "usernet", "workspaces",
		}},
		"guestagent": {layer: root, may: []string{"filetar", "guestproto"}},
		"helper":     {layer: root, may: []string{"config", "hostexec", "hostnet"}},
		"monitor": {layer: root, may: []string{
			"backends", "cgroup", "config", "diskcopy", "guestlink", "guestproto", "hostexec", "hypervisor", "monitorlink", "relay", "usernet",
		}},
	}
}

// processStarters are the packages that may start processes: one on the host, one in the guest.
func processStarters() []string { return []string{"hostexec", "guestagent"} }

// guestForbids is what the agent in the guest must not contain, for it is small and starts in milliseconds.
func guestForbids() []string {
	return []string{"net/http", "crypto/tls", "google.golang.org/grpc", "google.golang.org/protobuf", "connectrpc.com/connect"}
}

// limits of shape. A number that reaches the limit is a violation.
const (
	maxFileLines     = 600
	maxTestFileLines = 900
	maxFuncLines     = 80
	maxFields        = 16
	maxMethods       = 25
	maxInterface     = 8
)

// exceptions are the things that are larger than the limits, by name as the test prints it, with the size that they have.
// A number may only fall: the test fails if the thing has grown, and if it has shrunk and the number here has not.
func exceptions() map[string]int {
	return map[string]int{
		"interface internal/hypervisor.VMM": 9, // a process with two streams and an end; no two of its users need the same part
	}
}
