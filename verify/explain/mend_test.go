package explain

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/shell"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// write makes a file and its directories.
func write(t *testing.T, path string, b []byte, mode os.FileMode) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, b, mode)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// command explains an unsigned module and returns how to mend it.
func command(t *testing.T, s Source, path string) Mend {
	t.Helper()
	k, err := Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	r := k.Module(t.Context(), path)
	if len(r.Causes) == 0 {
		t.Fatalf("%s: no cause: %+v", path, r)
	}
	return r.Causes[0].Mend
}

// A key is made once, and not over another one.
func TestNewKey(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	module := testmod.WriteFile(t, "m.ko", real(t, "hello"))
	for _, authority := range []verify.Fact{verify.No, verify.Yes} {
		s := source(t, key)
		if err := s.Keys.Follow(verify.Facts{MachineCA: authority, PlatformModules: verify.No}); err != nil {
			t.Fatal(err)
		}
		s.Config = nil
		k, err := Open(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		first, second := k.Module(t.Context(), module), k.Module(t.Context(), module)
		made := map[verify.Fact]string{verify.No: "modsign keygen -o /root/module-key.pem ",
			verify.Yes: "test ! -e /root/module-ca-key.pem && test ! -e /root/module-ca.der && openssl req "}[authority]
		if m := first.Causes[0].Mend; !strings.HasPrefix(m.Command, made) || !strings.Contains(m.Command, " && mokutil ") {
			t.Errorf("the first: %+v", m)
		}
		if m := second.Causes[0].Mend; !strings.HasPrefix(m.Command, "modsign sign --key /root/module-") ||
			strings.Contains(m.Command, "mokutil") || m.Then == "" {
			t.Errorf("the second: %+v", m)
		}
		// What it made is found again.
		root := t.TempDir()
		p := map[verify.Fact]KeyPair{verify.No: newKey, verify.Yes: newAuthority}[authority]
		write(t, filepath.Join(root, p.Key), key.KeyPEM, 0o600)
		write(t, filepath.Join(root, p.Cert), key.Certificate.Raw, 0o644)
		s.KeyPairs = MachineKeys(root, release)
		if m := command(t, s, module); !strings.HasPrefix(m.Command, "modsign sign --key "+filepath.Join(root, p.Key)+" ") {
			t.Errorf("with the key: %+v", m)
		}
	}
}

// Commands work as they stand: with keys that others can read, and beside files that exist.
func TestKeyCommands(t *testing.T) {
	key, trusted := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	module := testmod.WriteFile(t, "m.ko", real(t, "hello"))
	dir := t.TempDir()
	p := KeyPair{filepath.Join(dir, "mok.pem"), filepath.Join(dir, "mok.pem")}
	write(t, p.Key, append(key.KeyPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: key.Certificate.Raw})...), 0o644)
	s := source(t, trusted)
	s.KeyPairs = []KeyPair{p}
	m := command(t, s, module)
	if !strings.HasPrefix(m.Command, "chmod 600 "+p.Key+" && modsign sign ") {
		t.Errorf("an open key: %s", m.Command)
	}
	if err := os.Chmod(p.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "mok.der"), []byte("another"), 0o644)
	m = command(t, s, module)
	if !strings.HasPrefix(m.Command, "modsign sign ") || !strings.Contains(m.Command, "-out "+dir+"/mok-2.der && ") ||
		!strings.HasSuffix(m.Command, "mokutil --import "+dir+"/mok-2.der") {
		t.Errorf("another file has the name: %s", m.Command)
	}
	// The conversion, as it is run.
	_, convert, _ := strings.Cut(m.Command, " && ")
	convert, _, _ = strings.Cut(convert, " && mokutil")
	testmod.Program(t, "openssl", "openssl")
	testmod.Run(t, "sh", "-c", convert)
	b, err := os.ReadFile(filepath.Join(dir, "mok-2.der"))
	if err == nil {
		_, err = x509.ParseCertificate(b)
	}
	if err != nil {
		t.Error(err)
	}
}

// Names with bytes that nobody sees come through a shell, and through a terminal.
func TestOddNames(t *testing.T) {
	testmod.Program(t, "bash", "bash")
	for _, name := range []string{"n\nl.ko", "\x1b[31m.ko", "\xff\xfe1.ko", "it's\t\\.ko", "\u202eok.\xc3", "plain.ko",
		"\u00fc x.ko"} {
		quoted := shell.Quote(name)
		if strings.ContainsFunc(quoted, func(r rune) bool { return r < ' ' || r == 0xfffd || r == 0x202e }) {
			t.Errorf("%q is %q", name, quoted)
		}
		if got := testmod.Run(t, "bash", "-c", "printf %s "+quoted); string(got) != name {
			t.Errorf("%q becomes %q by way of %s", name, got, quoted)
		}
	}
}

// Where no machine owner key counts, none is offered.
func TestNoOwnerKeys(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	module := testmod.WriteFile(t, "m.ko", real(t, "hello"))
	for _, test := range []struct {
		facts    verify.Facts
		firmware *verify.Firmware
		words    string
	}{
		{verify.Facts{LoadUEFI: verify.No}, nil, "CONFIG_LOAD_UEFI_KEYS"},
		{verify.Facts{Machine: verify.No, PlatformModules: verify.No}, nil, "no keyring .machine"},
		{verify.Facts{}, &verify.Firmware{SecureBoot: verify.No}, "boot with Secure Boot on"},
		{verify.Facts{PlatformModules: verify.No, MachineAlways: verify.No},
			&verify.Firmware{MokListTrusted: verify.No, SecureBoot: verify.Yes}, "shim did not start it"},
	} {
		s := source(t, key)
		s.NoShimTable = true
		s.Config, s.Firmware, s.Cmdline = nil, test.firmware, "module.sig_enforce=1"
		if err := s.Keys.Follow(test.facts); err != nil {
			t.Fatal(err)
		}
		m := command(t, s, module)
		if m.Command != "" || !strings.Contains(m.Then, test.words) || !strings.Contains(m.Then, "built into the kernel") ||
			!strings.Contains(m.Then, "or boot without module.sig_enforce=1") {
			t.Errorf("%+v: %+v", test.facts, m)
		}
	}
}

// A changed module of the distribution comes from its package, whose key nobody has.
func TestReinstall(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	s := source(t, key)
	s.Root = strings.TrimSuffix(s.Modules, "/lib/modules/"+release)
	write(t, filepath.Join(s.Root, "var/lib/dpkg/status"), nil, 0o644)
	changed := sign(t, key, inTree(t, real(t, "hello")))
	changed[100] ^= 1
	path := filepath.Join(s.Modules, "kernel/hello.ko")
	write(t, path, changed, 0o644)
	if m := command(t, s, path); !strings.Contains(m.Command, "apt-get install --reinstall ") {
		t.Errorf("%+v", m)
	}
}

// Without shim's table of variables, mokutil --trust-mok does not help.
func TestNoShimTable(t *testing.T) {
	builtin, key := testmod.NewKey(t, "ecdsa:p256"), testmod.NewKey(t, "rsa:2048")
	list, err := verify.ReadList(testmod.WriteFile(t, "MokListRT", key.CertPEM))
	if err != nil {
		t.Fatal(err)
	}
	s := source(t, builtin)
	f := verify.Firmware{MokList: []verify.List{list}, MokListTrusted: verify.No, SecureBoot: verify.Yes}
	s.Firmware, s.NoShimTable, s.Config = &f, true, nil
	err = s.Keys.Follow(verify.Facts{PlatformModules: verify.No, MachineAlways: verify.No})
	if err == nil {
		err = s.Keys.AddFirmware(f)
	}
	if err != nil {
		t.Fatal(err)
	}
	if m := command(t, s, testmod.WriteFile(t, "m.ko", sign(t, key, real(t, "hello")))); m.Command != "efibootmgr -v" {
		t.Errorf("%+v", m)
	}
	s.NoShimTable = false
	if m := command(t, s, testmod.WriteFile(t, "m.ko", real(t, "hello"))); !strings.HasSuffix(m.Command,
		" && mokutil --import /root/module-key.der && mokutil --trust-mok") {
		t.Errorf("with the table: %+v", m)
	}
}
