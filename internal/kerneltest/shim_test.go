//go:build kerneltest

package kerneltest

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/testcms"
	"github.com/modsign/modsign/internal/testmod"
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
	tree.Make(t, "CFLAGS_signing.o=-include "+header, "bzImage", "modules")
	return tree
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

// A shimMachine boots kernels by shim, with a machine owner key on MokList.
type shimMachine struct {
	platform, mok, onDB, revoked *testmod.Key
	program                      string
}

func newShimMachine(t testing.TB) *shimMachine {
	t.Helper()
	return &shimMachine{testmod.NewKey(t, "rsa:2048"), owner(t, "MOK"), owner(t, "db"), owner(t, "revoked"), program(t)}
}

// cases are modules signed with its keys.
func (m *shimMachine) cases(t testing.TB, payload []byte) []Case {
	t.Helper()
	return []Case{
		{Name: "MOK", Data: testcms.Signed(t, m.mok, payload)}, {Name: "db", Data: testcms.Signed(t, m.onDB, payload)},
		{Name: "revoked", Data: testcms.Signed(t, m.revoked, payload)}}
}

// What shim is told besides.
var (
	untrusted = []efiVariable{{"MokListTrusted", efi.Shim, 3, []byte{1}}} // machine owner keys are not for the kernel
	insecure  = []efiVariable{{"MokSBState", efi.Shim, 3, []byte{1}}}     // shim checks nothing
)

// boot compares what a kernel does with what is predicted. shim hands on MokListTrustedRT if the
// keys are trusted; the machine owner key then is in ring.
func (m *shimMachine) boot(t *testing.T, name string, kernel testmod.Kernel, cases []Case, variables []efiVariable,
	trusted bool, ring verify.Ring) {
	t.Helper()
	initrd := filepath.Join(t.TempDir(), "initrd")
	packGuest(t, initrd, cases, map[string]string{"modsign": m.program, "vmlinuz": kernel.Image, "config": kernel.Config},
		[][]string{{"/modsign", "doctor", "--kernel", "/vmlinuz", "--config", "/config", "--json"}})
	firmware := []efiVariable{
		{"PK", efi.Global, authenticated, certificates(m.platform)},
		{"KEK", efi.Global, authenticated, certificates(m.platform)},
		{"db", efi.Security, authenticated, certificates(m.platform, m.onDB)},
	}
	mokList, mokListX := certificates(m.mok, m.revoked), certificates(m.revoked)
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
	for _, known := range keys.Known() {
		if bytes.Equal(known.DER, m.mok.Certificate.Raw) && known.Ring != ring {
			t.Errorf("%s: the machine owner key is predicted in %q, want %q", name, known.Ring, ring)
		}
	}
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
	m.boot(t, "insecure", kernel, cases, insecure, true, "")
}
