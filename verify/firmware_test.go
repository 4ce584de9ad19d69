package verify

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/testmod"
)

// debian are the facts of Debian's kernels, and mainline those of a kernel of kernel.org
// with the same configuration.
var (
	mainline = Facts{
		Secondary: Yes, Machine: Yes, MachineCA: No, Platform: Yes, LoadUEFI: Yes, SecureBoot: Yes, Blacklist: Yes,
		Revocation: Yes, PlatformModules: No, MachineAlways: No, ModuleHashes: No,
	}
	debian = Facts{PlatformModules: Yes, MachineAlways: Yes, ModuleHashes: Yes, Revocation: No}.or(mainline)
)

// Where a machine owner key goes, and whether its modules load: the causes of the reports
// CachyOS/linux-cachyos 743 and pop-os/linux 447 (no MokListTrustedRT), deepin (a kernel
// without .machine), gardenlinux (one without IMA), and what distributions do about them.
func TestMachineOwnerKey(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	data := signed(t, key, testmod.ELF())
	mok := []List{ParseList("MokListRT", efi.Append(nil, efi.X509, efi.Shim, key.Certificate.Raw))}
	on := Firmware{MokList: mok, SecureBoot: Yes, MokListTrusted: Yes}
	unread := func(u UnreadFacts) Firmware { return Firmware{MokList: mok, Unread: u} }
	untrusted := Firmware{MokList: mok, SecureBoot: Yes, MokListTrusted: No}
	for _, test := range []struct {
		name     string
		firmware Firmware
		facts    Facts
		verdict  Verdict
		ring     Ring
		words    string // of the problem
	}{
		{"as it should be", on, mainline, Trusted, Machine, ""},
		{"without MokListTrustedRT", untrusted, mainline, UnknownKey, Platform, "does not verify modules with .platform"},
		{"without MokListTrustedRT, Debian", untrusted, debian, Trusted, Machine, ""},
		{"without MokListTrustedRT, Fedora", untrusted, Facts{PlatformModules: Yes}.or(mainline), Trusted, Platform, ""},
		{"without .machine", on, Facts{Machine: No}.or(mainline), UnknownKey, Platform, "does not verify modules"},
		{"Secure Boot is off", Firmware{MokList: mok, SecureBoot: No}, debian, UnknownKey, "", "Secure Boot is off"},
		{"without IMA", on, Facts{SecureBoot: No}.or(mainline), UnknownKey, "", "cannot tell whether Secure Boot is on"},
		{"no keys of the firmware", on, Facts{LoadUEFI: No}.or(mainline), UnknownKey, "", "CONFIG_LOAD_UEFI_KEYS"},
		{"authorities alone", on, Facts{MachineCA: Yes, Trusted: Yes}.or(mainline), UnknownKey, Platform, "authority"},
		{"authorities alone, Debian", on, Facts{MachineCA: Yes, Trusted: Yes}.or(debian), Trusted, Platform, "authority"},
		{"authorities without the trusted keyring", on, Facts{MachineCA: Yes, Trusted: No}.or(mainline), UnknownKey,
			Platform, "INTEGRITY_TRUSTED_KEYRING"},
		{"on db", Firmware{DB: mok, SecureBoot: No}, mainline, UnknownKey, Platform, "does not verify modules"},
		{"on db, Debian", Firmware{DB: mok, SecureBoot: No}, debian, Trusted, Platform, ""},
		{"on an ignored db", Firmware{DB: mok, IgnoreDB: true}, debian, UnknownKey, "", "MokIgnoreDB"},
		{"on both lists", Firmware{MokList: mok, MokListX: mok, SecureBoot: Yes}, mainline, Revoked, Machine, ""},
		{"on both lists, Debian", Firmware{MokList: mok, MokListX: mok, SecureBoot: Yes}, debian, Trusted, Machine, ""},
		{"MokListTrustedRT could not be read", unread(UnreadFacts{MokListTrusted: "x"}), mainline, Unreadable, Machine, ""},
		{"the same where it does not count", unread(UnreadFacts{MokListTrusted: "x"}), debian, Trusted, Machine, ""},
		{"SecureBoot could not be read", unread(UnreadFacts{SecureBoot: "x"}), debian, Unreadable, Machine, ""},
		{"MokIgnoreDB could not be read", unread(UnreadFacts{IgnoreDB: "x"}), mainline, Trusted, Machine, ""},
		{"MokIgnoreDB for a key on db", Firmware{DB: mok, Unread: UnreadFacts{IgnoreDB: "x"}}, debian,
			Unreadable, Platform, ""},
		{"on both lists, and neither is sure", Firmware{MokList: mok, DB: mok, Unread: UnreadFacts{SecureBoot: "x",
			IgnoreDB: "y"}}, debian, Unreadable, Machine, ""},
		{"on both lists, and one is sure", Firmware{MokList: mok, DB: mok, Unread: UnreadFacts{SecureBoot: "x"}}, debian,
			Trusted, Machine, ""},
		{"on dbx", Firmware{MokList: mok, DBX: mok, SecureBoot: Yes}, mainline, Revoked, Machine, ""},
	} {
		keys := new(Keyring)
		if err := keys.AddFirmware(test.firmware); err != nil {
			t.Fatal(err)
		}
		if err := keys.Follow(test.facts); err != nil { // after the firmware: the order does not matter
			t.Fatal(err)
		}
		r := Module(bytes.NewReader(data), int64(len(data)), keys)
		if r.Verdict != test.verdict {
			t.Errorf("%s: %s, want %s (%v)", test.name, r.Verdict, test.verdict, r.Err)
		}
		known := keys.Known()[0]
		got := known.Problem
		if known.Ring != test.ring || test.words == "" && got != "" || !strings.Contains(got, test.words) {
			t.Errorf("%s: in %q with problem %q; want %q and %q", test.name, known.Ring, got, test.ring, test.words)
		}
	}
}

// Hashes on dbx and MokListXRT: they come after the built-in certificates and db, and in
// front of MokListRT; and the kernel takes the time of revocation for a part of the hash.
func TestListedHashes(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	data := signed(t, key, testmod.ELF())
	tbs := keyring(t, key).held[0].cert.TBSHash()
	timed := append(slices.Clone(tbs), make([]byte, 16)...)
	file := sha256.Sum256(data)
	list := func(kind efi.GUID, element []byte) []List {
		return []List{ParseList("dbx", efi.Append(nil, kind, efi.Security, element))}
	}
	mok := Firmware{MokList: list(efi.X509, key.Certificate.Raw), SecureBoot: Yes, MokListTrusted: Yes}
	with := func(f Firmware, dbx []List) Firmware { f.DBX = dbx; return f }
	for _, test := range []struct {
		name     string
		firmware Firmware
		facts    Facts
		want     Verdict
	}{
		{"hash without a time", with(mok, list(efi.X509SHA256, tbs)), mainline, UnknownKey},
		{"hash with a time", with(mok, list(efi.X509SHA256, timed)), mainline, Trusted},
		{"hash of a key on db", with(Firmware{DB: mok.MokList}, list(efi.X509SHA256, tbs)), debian, Trusted},
		{"another type", with(mok, list(efi.X509SHA384, tbs)), mainline, Trusted},
		{"hash of the module", with(mok, list(efi.SHA256, file[:])), mainline, Trusted},
		{"hash of the module, Debian", with(mok, list(efi.SHA256, file[:])), debian, Revoked},
	} {
		keys := new(Keyring)
		if err := keys.AddFirmware(test.firmware); err != nil {
			t.Fatal(err)
		}
		if err := keys.Follow(test.facts); err != nil {
			t.Fatal(err)
		}
		r := Module(bytes.NewReader(data), int64(len(data)), keys)
		if r.Verdict != test.want {
			t.Errorf("%s: %s, want %s (%v)", test.name, r.Verdict, test.want, r.Err)
		}
		line := fmt.Sprintf("Module hash %x is blacklisted", file)
		if r.Verdict == Revoked && !slices.Contains(r.Dmesg, line) {
			t.Errorf("%s: the kernel logs %q", test.name, r.Dmesg)
		}
	}
}

// A malformed list counts up to the malformed place, as in the kernel.
func TestMalformedList(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	whole := efi.Append(nil, efi.X509, efi.Shim, key.Certificate.Raw)
	keys := new(Keyring)
	l := ParseList("MokListRT", append(whole, whole[:40]...))
	if err := keys.AddFirmware(Firmware{MokList: []List{l}, SecureBoot: Yes}); err != nil {
		t.Fatal(err)
	}
	if l.Problem() == nil || keys.Len() != 1 || !strings.Contains(fmt.Sprint(keys.Warnings()), "MokListRT: malformed") {
		t.Errorf("%d certificates, warnings %q, %v", keys.Len(), keys.Warnings(), l.Problem())
	}
}

// A running kernel's keyrings decide; a key of which no certificate is known leaves no verdict.
func TestFollowRunning(t *testing.T) {
	t.Parallel()
	a, b := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	name := func(key *testmod.Key) string { return keyring(t, key).Names()[0] }
	both := func() *Keyring {
		keys := keyring(t, a)
		if err := keys.AddTo(Platform, b.Certificate, "db"); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	verdict := func(keys *Keyring, key *testmod.Key) Verdict {
		data := signed(t, key, testmod.ELF())
		return Module(bytes.NewReader(data), int64(len(data)), keys).Verdict
	}
	for _, test := range []struct {
		name  string
		rings map[Ring][]string
		a, b  Verdict
	}{
		{"as expected", map[Ring][]string{Builtin: {name(a)}, Platform: {name(b)}}, Trusted, UnknownKey},
		{"moved", map[Ring][]string{Builtin: {name(a)}, Machine: {name(b)}, Platform: nil}, Trusted, Trusted},
		{"absent", map[Ring][]string{Builtin: nil, Platform: nil}, UnknownKey, UnknownKey},
		{"ring not read", map[Ring][]string{Platform: nil}, Trusted, Unreadable},
		{"unknown key", map[Ring][]string{Builtin: {name(a)}, Secondary: {"x: 0011"}, Platform: {name(b)}},
			Trusted, Unreadable},
		{"unknown key that does not count", map[Ring][]string{Builtin: {name(a)}, Platform: {name(b), "x: 00"}},
			Trusted, UnknownKey},
	} {
		keys := both()
		if err := keys.FollowRunning(test.rings); err != nil {
			t.Fatal(err)
		}
		if got := verdict(keys, a); got != test.a {
			t.Errorf("%s: the first is %s, want %s", test.name, got, test.a)
		}
		if got := verdict(keys, b); got != test.b {
			t.Errorf("%s: the second is %s, want %s", test.name, got, test.b)
		}
	}
	keys := both()
	live := map[Ring][]string{Secondary: {"x: 00"}, Blacklist: {"tbs:00", "bin:11", "y: 22"}}
	if err := keys.FollowRunning(live); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(keys.Unmatched(Secondary), keys.Unmatched(Blacklist), keys.Unmatched(Machine))
	if got != "[x: 00] [y: 22] []" {
		t.Errorf("unmatched: %s", got)
	}
}

// A malformed list in a file counts as in the kernel: up to the malformed place. One without
// elements in front of that says what is wrong.
func TestReadMalformedList(t *testing.T) {
	t.Parallel()
	cert := testmod.NewKey(t, "ecdsa:p256").Certificate.Raw
	good := efi.Append(nil, efi.X509, efi.Shim, cert)
	path := filepath.Join(t.TempDir(), "list")
	for _, test := range []struct {
		name  string
		data  []byte
		certs int
		words string
	}{
		{"good", good, 1, ""},
		{"good and junk", append(bytes.Clone(good), 1, 2, 3), 1, "3 bytes at offset"},
		{"good and cut off", append(bytes.Clone(good), good[:len(good)-9]...), 1, "are left"},
		{"cut off", good[:len(good)-9], 0, "claims"},
		{"cut off, with attributes", append([]byte{6, 0, 0, 0}, good[:len(good)-9]...), 0, "claims"},
		{"no list", []byte("nothing of all this"), 0, "nor is it a list of EFI"},
		{"DER", cert, 1, ""},
	} {
		if err := os.WriteFile(path, test.data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := ReadList(path)
		problem := ""
		for _, err := range []error{err, l.Problem()} {
			if err != nil {
				problem += err.Error()
			}
		}
		if (err == nil) != (test.certs > 0) || len(l.Certificates()) != test.certs ||
			!strings.Contains(problem, test.words) || (test.words == "") != (problem == "") {
			t.Errorf("%s: %d certificates, %v, %q", test.name, len(l.Certificates()), err, problem)
		}
	}
}

// No list of the firmware makes a keyring fail, or trust what is on no list.
func FuzzFirmware(f *testing.F) {
	key := testmod.NewKey(f, "ecdsa:p256")
	certs := efi.Append(nil, efi.X509, efi.Shim, key.Certificate.Raw)
	f.Add(certs)
	f.Add(efi.Append(certs, efi.X509SHA256, efi.Security, make([]byte, 48)))
	f.Add(efi.Append(efi.Append(nil, efi.SHA256, efi.Security, make([]byte, 32)), efi.X509, efi.Shim, []byte{0x30, 0x82}))
	f.Fuzz(func(t *testing.T, data []byte) {
		list := []List{ParseList("list", data)}
		keys := new(Keyring)
		if err := keys.AddFirmware(Firmware{DB: list, DBX: list, MokList: list, MokListX: list}); err != nil {
			t.Fatal(err)
		}
		if len(keys.Known()) != 4*len(list[0].Certificates()) {
			t.Fatalf("%d certificates known of %d in four lists", len(keys.Known()), len(list[0].Certificates()))
		}
	})
}
