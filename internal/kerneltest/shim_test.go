//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto/x509"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/testcms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kernelimage"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/explain"
)

// firmwareKeys is a configuration for a kernel that reads the keys of the firmware and of shim.
const firmwareKeys = `
CONFIG_PCI=y
CONFIG_ACPI=y
CONFIG_EFI=y
CONFIG_EFI_STUB=y
CONFIG_EFIVAR_FS=y
CONFIG_SECURITY=y
CONFIG_SECURITYFS=y
CONFIG_INTEGRITY=y
CONFIG_INTEGRITY_SIGNATURE=y
CONFIG_INTEGRITY_ASYMMETRIC_KEYS=y
CONFIG_INTEGRITY_PLATFORM_KEYRING=y
CONFIG_INTEGRITY_MACHINE_KEYRING=y
CONFIG_SECONDARY_TRUSTED_KEYRING=y
CONFIG_SYSTEM_BLACKLIST_KEYRING=y
CONFIG_SYSTEM_REVOCATION_LIST=y
`

// buildUpstream builds such a kernel that verifies modules as that of kernel.org does: Debian's
// source looks into .platform too.
func buildUpstream(t testing.TB) *Tree {
	t.Helper()
	tree := configure(t, SourceOf(t, "7"), "firmware", without(Base, gone...)+firmwareKeys)
	header := filepath.Join(tree.Objtree, "upstream.h")
	text := []byte("#undef CONFIG_INTEGRITY_PLATFORM_KEYRING\n")
	if is, err := os.ReadFile(header); err != nil || !bytes.Equal(is, text) {
		if err := os.WriteFile(header, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rebuildUpstream(t, tree)
	return tree
}

// rebuildUpstream builds it again after its configuration has changed.
func rebuildUpstream(t testing.TB, tree *Tree) {
	t.Helper()
	tree.Make(t, "CFLAGS_signing.o=-include "+filepath.Join(tree.Objtree, "upstream.h"), "bzImage", "modules")
}

// unifiedImage makes one program of a kernel, its command line and its initramfs, signed.
func unifiedImage(t testing.TB, key *testmod.Key, image, initrd string) string {
	t.Helper()
	const stub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	if _, err := os.Stat(stub); err != nil {
		testmod.Missing(t, "the stub of unified kernel images", "apt-get install systemd-boot-efi")
	}
	path := filepath.Join(t.TempDir(), "linux.efi")
	args := []string{"-n", testmod.Program(t, "objcopy", "binutils")}
	for _, section := range []struct {
		name, file string
		address    int
	}{
		{".osrel", testmod.WriteFile(t, "osrel", []byte("ID=test\n")), 0x20000},
		{".cmdline", testmod.WriteFile(t, "cmdline", []byte("console=ttyS0 panic=-1 tsc=unstable")), 0x30000},
		{".linux", image, 0x2000000}, {".initrd", initrd, 0x6000000},
	} {
		args = append(args, "--add-section", section.name+"="+section.file,
			"--change-section-vma", fmt.Sprintf("%s=%#x", section.name, section.address))
	}
	testmod.Run(t, args[1], append(args[2:], stub, path)...)
	return signImage(t, key, path)
}

const shimImage = "/usr/lib/shim/shimx64.efi"

// vendorCertificate returns the certificate that is built into shim, which shim puts in front of
// the machine owner's (shim: cert.S).
func vendorCertificate(t testing.TB) []byte {
	t.Helper()
	f, err := pe.Open(shimImage)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	section, err := f.Section(".vendor_cert").Data()
	if err != nil {
		t.Fatal(err)
	}
	size, offset := binary.LittleEndian.Uint32(section), binary.LittleEndian.Uint32(section[8:])
	return section[offset : offset+size]
}

// bootShim boots a unified image by shim.
func bootShim(t testing.TB, key *testmod.Key, image, vars string) []byte {
	t.Helper()
	if _, err := os.Stat(shimImage); err != nil {
		testmod.Missing(t, "shim", "apt-get install shim-unsigned")
	}
	partition := t.TempDir()
	dir := filepath.Join(partition, "EFI/BOOT")
	err := os.MkdirAll(dir, 0o755)
	for name, file := range map[string]string{"BOOTX64.EFI": signImage(t, key, shimImage), "grubx64.efi": image} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), read(t, file), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	return machineOf(t, append(secureMachine(vars),
		"-drive", "if=none,id=esp,format=raw,file=fat:rw:"+partition, "-device", "virtio-blk-pci,drive=esp")...)
}

// A shimMachine boots kernels by shim, with machine owner keys on MokList.
type shimMachine struct {
	platform, mok, onDB, revoked *testmod.Key
	others                       []*testmod.Key // on MokList
	program                      string
	// inside has modsign verify and explain the cases in the machine too.
	inside bool
}

func newShimMachine(t testing.TB) *shimMachine {
	t.Helper()
	return &shimMachine{platform: testmod.NewKey(t, "rsa:2048"), mok: owner(t, "MOK"), onDB: owner(t, "db"),
		revoked: owner(t, "revoked"), program: program(t)}
}

// cases are modules signed with its keys.
func (m *shimMachine) cases(t testing.TB, payload []byte) []Case {
	t.Helper()
	cases := []Case{
		{Name: "MOK", Data: testcms.Signed(t, m.mok, payload)}, {Name: "db", Data: testcms.Signed(t, m.onDB, payload)},
		{Name: "revoked", Data: testcms.Signed(t, m.revoked, payload)}}
	for _, other := range m.others {
		cases = append(cases, Case{Name: other.Certificate.Subject.CommonName, Data: testcms.Signed(t, other, payload)})
	}
	return cases
}

// What shim is told besides.
var (
	untrusted = []efiVariable{{"MokListTrusted", efi.Shim, 3, []byte{1}}} // machine owner keys are not for the kernel
	insecure  = []efiVariable{{"MokSBState", efi.Shim, 3, []byte{1}}}     // shim checks nothing
)

// boot compares what a kernel does with what is predicted. shim hands on MokListTrustedRT if the
// keys are trusted; the machine owner key then is in ring.
func (m *shimMachine) boot(t *testing.T, name string, kernel testmod.Kernel, cases []Case, variables []efiVariable,
	trusted bool, ring verify.Ring) (*verify.Keyring, map[string]explain.ID) {
	t.Helper()
	initrd := filepath.Join(t.TempDir(), "initrd")
	commands := [][]string{{"/modsign", "doctor", "--kernel", "/vmlinuz", "--config", "/config", "--json"}}
	if m.inside {
		for _, words := range [][]string{{"verify"}, {"explain"}, {"verify", "--mok", "efivars"}} {
			words = append([]string{"/modsign"}, words...)
			if len(words) == 2 {
				words = append(words, "--running")
			}
			words = append(words, "--kernel", "/vmlinuz", "--config", "/config", "--json")
			for i := range cases {
				words = append(words, fmt.Sprintf("/cases/%d.ko", i))
			}
			commands = append(commands, words)
		}
	}
	packGuest(t, initrd, cases,
		map[string]string{"modsign": m.program, "vmlinuz": kernel.Image, "config": kernel.Config}, commands)
	firmware := []efiVariable{
		{"PK", efi.Global, authenticated, certificates(m.platform)},
		{"KEK", efi.Global, authenticated, certificates(m.platform)},
		{"db", efi.Security, authenticated, certificates(m.platform, m.onDB)},
	}
	mokList, mokListX := certificates(append([]*testmod.Key{m.mok, m.revoked}, m.others...)...), certificates(m.revoked)
	lists := []efiVariable{{"MokList", efi.Shim, 3, mokList}, {"MokListX", efi.Shim, 3, mokListX}}
	console := bootShim(t, m.platform, unifiedImage(t, m.platform, kernel.Image, initrd),
		variableStore(t, slices.Concat(firmware, lists, variables)))

	// What shim makes of that for the kernel.
	root := t.TempDir()
	firmware = append(firmware, efiVariable{"MokListXRT", efi.Shim, 6, mokListX},
		efiVariable{"SecureBoot", efi.Global, 6, []byte{1}}, efiVariable{"SetupMode", efi.Global, 6, []byte{0}})
	if ring == "" {
		firmware = append(firmware, efiVariable{"MokSBStateRT", efi.Shim, 6, []byte{1}})
	}
	efivars(t, root, firmware)
	table := filepath.Join(root, "sys/firmware/efi/mok-variables")
	vendor := efi.Append(nil, efi.X509, efi.Shim, vendorCertificate(t))
	err := errors.Join(os.Mkdir(table, 0o755),
		os.WriteFile(filepath.Join(table, "MokListRT"), append(vendor, mokList...), 0o600))
	if trusted {
		err = errors.Join(err, os.WriteFile(filepath.Join(table, "MokListTrustedRT"), []byte{1}, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	keys := predicted(t, kernel.Image, kernel.Config, kernel.Version, root)
	said := agrees(t, console, cases, keys)
	causes := explains(t, console, cases, kernel, keys, root)
	if counts, _ := keys.Counts(verify.Platform); ring == verify.Platform && !trusted && !counts &&
		causes["MOK"] != explain.MokNotTrusted {
		t.Errorf("%s: without MokListTrustedRT the cause is %q", name, causes["MOK"])
	}
	if !said.ShimTable || said.MokListTrusted == nil || *said.MokListTrusted != trusted {
		t.Errorf("%s: doctor says %+v", name, said)
	}
	if is := ringOf(keys, m.mok); is != ring {
		t.Errorf("%s: the machine owner key is predicted in %q, want %q", name, is, ring)
	}
	if m.inside {
		m.saysSame(t, console, cases, keys, causes)
	}
	return keys, causes
}

// saysSame compares what verify and explain say in the machine with what they say outside of it.
func (m *shimMachine) saysSame(t *testing.T, console []byte, cases []Case, keys *verify.Keyring,
	causes map[string]explain.ID) {
	t.Helper()
	results, _, err := fromLoader[result](console, "modsign-result")
	if err != nil || len(results) != 4 {
		t.Fatal(results, err)
	}
	running, explained, efivars := guestVerdicts(t, results[1]), results[2].Output, guestVerdicts(t, results[3])
	for i, c := range cases {
		path := fmt.Sprintf("/cases/%d.ko", i)
		r := verify.Module(bytes.NewReader(c.Data), int64(len(c.Data)), keys)
		if want := string(r.Verdict); running[path] != want || efivars[path] != want {
			t.Errorf("%s: verify says %q with --running and %q with --mok efivars in the machine, want %q", c.Name,
				running[path], efivars[path], want)
		}
		var line string
		for line = range strings.Lines(explained) {
			if strings.Contains(line, fmt.Sprintf("%q", path)) {
				break
			}
		}
		want := `"verdict":"loads"`
		if id := causes[c.Name]; id != "" {
			want = fmt.Sprintf(`"id":%q`, id)
		}
		if !strings.Contains(line, want) {
			t.Errorf("%s: explain --running does not say %s in the machine, but %s", c.Name, want, line)
		}
	}
	if t.Failed() {
		t.Logf("%s\n%s\n%s", results[1].Output, explained, results[3].Output)
	}
}

// ringOf returns the ring in which the certificate of a key is predicted.
func ringOf(keys *verify.Keyring, key *testmod.Key) (ring verify.Ring) {
	for _, known := range keys.Known() {
		if bytes.Equal(known.DER, key.Certificate.Raw) && known.Ring != verify.Blacklist {
			ring = known.Ring
		}
	}
	return ring
}

// A real shim, and Debian's kernel, which takes machine owner keys for trusted whatever shim says.
func TestShim(t *testing.T) {
	if !full() {
		return // with --full; a test that skips is a failure
	}
	kernels := testmod.Kernels(t)
	kernel := kernels[len(kernels)-1]
	m := newShimMachine(t)
	cases := m.cases(t, withoutSignature(t, moduleOf(t, kernel, "fs/nls/nls_cp437")))
	load := Case{Name: "efivarfs", Data: moduleOf(t, kernel, "fs/efivarfs/efivarfs"), Keep: true}
	m.boot(t, "Debian", kernel, append([]Case{load}, cases...), untrusted, false, verify.Machine)
}

// A real shim, and a kernel of kernel.org: the machine owner key is in .machine, and if shim is
// told not to have it trusted, or not to check anything, elsewhere. This is what the reports
// CachyOS/linux-cachyos 743 and pop-os/linux 447 are about.
func TestShimUpstream(t *testing.T) {
	if !full() {
		return // with --full; a test that skips is a failure
	}
	tree := buildUpstream(t)
	kernel := testmod.Kernel{Version: "7.2.0-kerneltest", Image: tree.Image(), Config: tree.config()}
	m := newShimMachine(t)
	cases := m.cases(t, read(t, filepath.Join(tree.Objtree, "crypto/md4.ko")))
	m.boot(t, "trusted", kernel, cases, nil, true, verify.Machine)
	m.boot(t, "not trusted", kernel, cases, untrusted, false, verify.Platform)
	_, causes := m.boot(t, "insecure", kernel, cases, insecure, true, "")
	if causes["MOK"] != explain.MokNotRead || causes["db"] != explain.KeyElsewhere {
		t.Errorf("insecure: the causes are %v", causes)
	}
}

// A kernel of kernel.org that takes certificates of authorities alone into .machine, in its
// variants, and one without .machine.
func TestMachineAuthorities(t *testing.T) {
	if !full() {
		return // with --full; a test that skips is a failure
	}
	tree := buildUpstream(t)
	m := newShimMachine(t)
	m.inside = true
	const sign, certs = x509.KeyUsageDigitalSignature, x509.KeyUsageCertSign
	authority, signing := ownerFor(t, "authority", true, certs), ownerFor(t, "authority that signs", true, certs|sign)
	crl := ownerFor(t, "authority for CRLs", true, x509.KeyUsageCRLSign)
	noAuthority := ownerFor(t, "no authority", false, certs)
	plain := ownerFor(t, "authority for anything", true, 0)
	m.others = []*testmod.Key{authority, signing, crl, noAuthority, plain}
	cases := m.cases(t, read(t, filepath.Join(tree.Objtree, "crypto/md4.ko")))
	for _, kernel := range []struct {
		name, config string
		machine      []*testmod.Key // in .machine
		cause        explain.ID     // of the others
	}{
		{"authorities", "CONFIG_INTEGRITY_CA_MACHINE_KEYRING=y\n", []*testmod.Key{authority, signing},
			explain.NotAuthority},
		{"authorities that do not sign", "CONFIG_INTEGRITY_CA_MACHINE_KEYRING=y\n" +
			"CONFIG_INTEGRITY_CA_MACHINE_KEYRING_MAX=y\n", []*testmod.Key{authority}, explain.NotAuthority},
		{"no .machine for them", "CONFIG_INTEGRITY_CA_MACHINE_KEYRING=y\n" +
			"# CONFIG_INTEGRITY_TRUSTED_KEYRING is not set\n", nil, explain.NoMachineKeyring},
		{"no .machine", "# CONFIG_INTEGRITY_MACHINE_KEYRING is not set\n", nil, explain.NoMachineKeyring},
	} {
		t.Run(kernel.name, func(t *testing.T) {
			tree.Reconfigure(t, kernel.config)
			rebuildUpstream(t, tree)
			keys, causes := m.boot(t, kernel.name, testmod.Kernel{Version: "7.2.0-kerneltest", Image: tree.Image(),
				Config: tree.config()}, cases, nil, true, verify.Platform)
			for _, key := range append([]*testmod.Key{m.mok}, m.others...) {
				name := key.Certificate.Subject.CommonName
				if key == m.mok {
					name = "MOK"
				}
				ring, cause := verify.Platform, kernel.cause
				if slices.Contains(kernel.machine, key) {
					ring, cause = verify.Machine, ""
				}
				if is := ringOf(keys, key); is != ring || causes[name] != cause {
					t.Errorf("%s: %s is predicted in %q, with the cause %q; want %q, %q", kernel.name, name, is, causes[name], ring,
						cause)
				}
			}
			if causes["db"] != explain.KeyElsewhere {
				t.Errorf("%s: db: %q", kernel.name, causes["db"])
			}
		})
	}
}

// A boot image is a program of EFI. One with a certificate that modsign has added boots without
// Secure Boot, and with it when it is signed again.
func TestAddCertEFI(t *testing.T) {
	if !full() {
		return // with --full; a test that skips is a failure
	}
	tree := buildUpstream(t)
	tree.Reconfigure(t, "CONFIG_SYSTEM_EXTRA_CERTIFICATE=y\n")
	rebuildUpstream(t, tree)
	platform, added, unknown := testmod.NewKey(t, "rsa:2048"), owner(t, "added"), owner(t, "unknown")
	payload := read(t, filepath.Join(tree.Objtree, "crypto/md4.ko"))
	cases := []Case{{Name: "added", Data: testcms.Signed(t, added, payload)},
		{Name: "unknown", Data: testcms.Signed(t, unknown, payload)}}

	// The image is signed, as that of a distribution is.
	_, cert := platform.Files(t)
	signed := signImage(t, platform, tree.Image())
	image := filepath.Join(t.TempDir(), "vmlinuz")
	_, err := kernelimage.AddCertificate(t.Context(), signed, added.Certificate, kernelimage.Options{Output: image})
	if !errors.Is(err, kernelimage.ErrSigned) {
		t.Fatalf("a signed image: %v", err)
	}
	result, err := kernelimage.AddCertificate(t.Context(), signed, added.Certificate,
		kernelimage.Options{Output: image, DropSignature: true})
	if err != nil || !result.Dropped {
		t.Fatalf("%+v, %v", result, err)
	}
	again := signImage(t, platform, image)
	testmod.Run(t, testmod.Program(t, "sbverify", "sbsigntool"), "--cert", cert, again)

	variables := []efiVariable{
		{"PK", efi.Global, authenticated, certificates(platform)},
		{"KEK", efi.Global, authenticated, certificates(platform)},
		{"db", efi.Security, authenticated, certificates(platform)},
	}
	const release = "7.2.0-kerneltest"
	for _, c := range []struct {
		name, image string
		variables   []efiVariable
		secure      byte
	}{{"without Secure Boot", image, nil, 0}, {"with Secure Boot", again, variables, 1}} {
		initrd := filepath.Join(t.TempDir(), "initrd")
		packGuest(t, initrd, cases, map[string]string{"modsign": program(t), "vmlinuz": c.image, "config": tree.config()},
			[][]string{{"/modsign", "doctor", "--kernel", "/vmlinuz", "--config", "/config", "--json"}})
		console := boot(t, c.image, initrd, secureMachine(variableStore(t, c.variables))...)
		root := t.TempDir()
		efivars(t, root, append(c.variables, efiVariable{"SecureBoot", efi.Global, 6, []byte{c.secure}},
			efiVariable{"SetupMode", efi.Global, 6, []byte{1 - c.secure}}))
		keys := predicted(t, c.image, tree.config(), release, root)
		said := agrees(t, console, cases, keys)
		kernel := testmod.Kernel{Version: release, Image: c.image, Config: tree.config()}
		causes := explains(t, console, cases, kernel, keys, root)
		if causes["added"] != "" || causes["unknown"] != explain.UnknownKey {
			t.Errorf("%s: the causes are %v", c.name, causes)
		}
		if said.SecureBoot == nil || *said.SecureBoot != (c.secure == 1) {
			t.Errorf("%s: doctor says %+v", c.name, said)
		}
	}
}
