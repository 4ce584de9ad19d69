package machine

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/testcms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

// A fakeRoot is a root directory in the making.
type fakeRoot struct {
	t   testing.TB
	dir string
}

func newRoot(t testing.TB) *fakeRoot {
	t.Helper()
	r := &fakeRoot{t, t.TempDir()}
	if err := os.Chmod(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.file("sys/module/module/parameters/sig_enforce", 0o644, []byte("N\n"))
	r.file("sys/kernel/security/lockdown", 0o644, []byte("none [integrity] confidentiality\n"))
	r.file("proc/sys/kernel/modules_disabled", 0o644, []byte("0\n"))
	return r
}

func (r *fakeRoot) file(name string, mode os.FileMode, data []byte) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// variable writes a variable as efivarfs shows it.
func (r *fakeRoot) variable(name string, owner efi.GUID, attributes byte, value ...byte) {
	r.t.Helper()
	r.file(fmt.Sprintf("%s/%s-%s", efivarsDir, name, owner), 0o644, append([]byte{attributes, 0, 0, 0}, value...))
}

// secure makes a machine with Secure Boot.
func (r *fakeRoot) secure() {
	r.variable("SecureBoot", efi.Global, 6, 1)
	r.variable("SetupMode", efi.Global, 6, 0)
}

func list(certs ...*x509.Certificate) (b []byte) {
	for _, c := range certs {
		b = efi.Append(b, efi.X509, efi.Shim, c.Raw)
	}
	return b
}

// Where the kernel looks for shim's list and for MokListTrustedRT, and how it decides that
// Secure Boot is on.
func TestRead(t *testing.T) {
	t.Parallel()
	a, b := testmod.NewKey(t, "ecdsa:p256").Certificate, testmod.NewKey(t, "ecdsa:p384").Certificate
	read := func(r *fakeRoot) *State {
		s, err := Read(r.dir, false)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	r := newRoot(t)
	r.secure()
	r.variable("MokListRT", efi.Shim, 6, list(a)...)
	s := read(r)
	if s.SecureBoot != verify.Yes || s.Firmware.MokListTrusted != verify.No || s.ShimTable || len(s.Problems) > 0 ||
		len(s.Firmware.MokList) != 1 || s.Firmware.MokList[0].Len() != 1 || s.Policy(nil).Enforced() != verify.Yes {
		t.Errorf("with variables alone: %+v", s)
	}
	// The variable MokListTrustedRT does not count; that of shim's table does.
	r.variable("MokListTrustedRT", efi.Shim, 6, 1)
	if s := read(r); s.Firmware.MokListTrusted != verify.No {
		t.Error("MokListTrustedRT counts as a variable")
	}
	r.file(mokDir+"/MokListRT", 0o400, list(a, b))
	r.file(mokDir+"/MokListTrustedRT", 0o400, []byte{1})
	if s := read(r); s.Firmware.MokListTrusted != verify.Yes || !s.ShimTable || s.Firmware.MokList[0].Len() != 2 {
		t.Errorf("with shim's table: %+v", s)
	}
	r.file(mokDir+"/MokListRT", 0o400, list(a, b)[:50]) // malformed: the kernel takes the variable
	if s := read(r); len(s.Firmware.MokList) != 2 || s.Firmware.MokList[1].Len() != 1 || len(s.Problems) != 1 {
		t.Errorf("with a malformed table: %+v, %v", s.Firmware.MokList, s.Problems)
	}
	r.file(mokDir+"/MokListRT", 0o400, nil) // a list that is empty: the kernel does not look further
	if s := read(r); len(s.Firmware.MokList) != 1 || s.Firmware.MokList[0].Len() != 0 || len(s.Problems) > 0 {
		t.Errorf("with an empty table: %+v, %v", s.Firmware.MokList, s.Problems)
	}
	r.variable("MokSBStateRT", efi.Shim, 7, 1) // non-volatile: anybody can have set it
	if s := read(r); s.SecureBoot != verify.Yes {
		t.Error("a MokSBStateRT that is not shim's counts")
	}
	r.variable("MokSBStateRT", efi.Shim, 6, 1)
	if s := read(r); s.SecureBoot != verify.No {
		t.Error("shim's MokSBStateRT does not count")
	}
	r.variable("SetupMode", efi.Global, 6, 1)
	if s := read(r); s.SecureBoot != verify.No || s.SetupMode != verify.Yes {
		t.Error("setup mode does not count")
	}
	if s := read(newRoot(t)); s.EFI || s.SecureBoot != verify.No || len(s.Problems) > 0 {
		t.Errorf("without EFI: %+v", s)
	}
	if _, err := Read(filepath.Join(r.dir, "absent"), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a root directory: %v", err)
	}
}

// What is there and is no file to read is not taken for absent.
func TestReadOddFiles(t *testing.T) {
	t.Parallel()
	a := testmod.NewKey(t, "ecdsa:p256").Certificate
	for _, test := range []struct {
		name   string
		change func(r *fakeRoot, table string) error
		source string
		words  string
	}{
		{"dangling", func(_ *fakeRoot, table string) error { return os.Symlink("absent", table) },
			"MokListRT", "leads to nothing"},
		{"leads out", func(_ *fakeRoot, table string) error {
			return os.Symlink("../../../../../../../../../etc/hostname", table)
		}, "MokListRT", "leads to nothing"},
		{"directory", func(_ *fakeRoot, table string) error { return os.Mkdir(table, 0o755) },
			"MokListRT", "not a regular file"},
		{"FIFO", func(_ *fakeRoot, table string) error { return syscall.Mkfifo(table, 0o600) },
			"MokListRT", "not a regular file"},
		{"device", func(_ *fakeRoot, table string) error { return os.Symlink("/dev/null", table) },
			"MokListRT", "leads to nothing"},
		{"firmware elsewhere", func(r *fakeRoot, _ string) error {
			dir := filepath.Join(r.dir, "sys/firmware")
			return errors.Join(os.RemoveAll(dir), os.Symlink("/absent/firmware", dir))
		}, "sys/firmware", "leads to nothing"},
		{"too large", func(_ *fakeRoot, table string) error {
			return errors.Join(os.WriteFile(table, nil, 0o600), os.Truncate(table, efi.MaxSize+1))
		}, "MokListRT", "larger than"},
	} {
		r := newRoot(t)
		r.secure()
		r.variable("MokListRT", efi.Shim, 6, list(a)...)
		table := filepath.Join(r.dir, mokDir, "MokListRT")
		if err := errors.Join(os.MkdirAll(filepath.Dir(table), 0o755), test.change(r, table)); err != nil {
			t.Fatal(err)
		}
		s, err := Read(r.dir, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Problems) != 1 || !strings.HasSuffix(s.Problems[0].Source, test.source) ||
			!strings.Contains(s.Problems[0].String(), test.words) {
			t.Errorf("%s: %v, want one of %s: %s", test.name, s.Problems, test.source, test.words)
		}
		if s.Missed("MokListRT") != (test.source != "MokListRT") || s.Missed("dbx") != (test.source != "MokListRT") {
			t.Errorf("%s: MokListRT is missed: %t, dbx: %t", test.name, s.Missed("MokListRT"), s.Missed("dbx"))
		}
		if test.source != "MokListRT" {
			continue
		}
		r.file(fmt.Sprintf("%s/dbx-%s", efivarsDir, efi.Security), 0o644, nil)
		if s, err := Read(r.dir, false); err != nil || !s.Missed("dbx") {
			t.Errorf("%s: a dbx without attributes is not missed: %v", test.name, err)
		}
	}
}

// What cannot be read leaves no verdict, and no finding of a key that may be there.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	data := testcms.Signed(t, key, testmod.ELF())
	r := newRoot(t)
	r.secure()
	r.file("var/lib/dkms/mok.pub", 0o644, key.Certificate.Raw)
	spoil := func(name string) {
		t.Helper()
		path := filepath.Join(r.dir, name)
		os.Remove(path)
		if err := os.MkdirAll(path, 0o755); err != nil { // a directory: not even root reads it
			t.Fatal(err)
		}
	}
	check := func(what string, trusted *x509.Certificate, want verify.Verdict) {
		t.Helper()
		s, err := Read(r.dir, false)
		if err != nil {
			t.Fatal(err)
		}
		keys := new(verify.Keyring)
		if trusted != nil {
			err = keys.Add(trusted, "image")
		}
		if err := errors.Join(err, s.Apply(keys)); err != nil {
			t.Fatal(err)
		}
		if got := verify.Module(bytes.NewReader(data), int64(len(data)), keys); got.Verdict != want {
			t.Errorf("%s: %s, want %s (%v)", what, got.Verdict, want, got.Err)
		}
		findings, _, err := Examine(s, keys, Options{Root: r.dir})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if (f.Level == Refuses) != (want == verify.UnknownKey) {
				t.Errorf("%s: %+v", what, f)
			}
		}
	}
	check("all is read", nil, verify.UnknownKey)
	check("all is read", key.Certificate, verify.Trusted)
	// A machine owner key counts if shim said so.
	r.file(mokDir+"/MokListRT", 0o400, list(key.Certificate))
	endless := filepath.Join(r.dir, mokDir, "MokListTrustedRT")
	if err := os.Symlink("MokListTrustedRT", endless); err != nil {
		t.Fatal(err)
	}
	check("perhaps not for the kernel", nil, verify.Unreadable)
	check("perhaps not for the kernel", key.Certificate, verify.Trusted)
	if err := os.Remove(endless); err != nil {
		t.Fatal(err)
	}
	spoil(mokDir + "/MokListRT")
	check("no list of shim", nil, verify.Unreadable)
	check("no list of shim", key.Certificate, verify.Trusted)
	spoil(fmt.Sprintf("%s/dbx-%s", efivarsDir, efi.Security))
	check("no dbx", key.Certificate, verify.Unreadable)
}

// isKey recognizes the keys of these tests. TestDoctor of cmd/modsign has package keyscan do it.
func isKey(path string) (bool, error) {
	b, err := os.ReadFile(path)
	return bytes.Contains(b, []byte("PRIVATE KEY-----")), err
}

func names(findings []Finding) (all []string) {
	for _, f := range findings {
		all = append(all, fmt.Sprintf("%s %s", f.Level, f.Name))
	}
	slices.Sort(all)
	return all
}

// A list of thousands of keys is no list of thousands of findings.
func TestExamineManyKeys(t *testing.T) {
	t.Parallel()
	var certs []*x509.Certificate
	for range maxAlike + 3 {
		certs = append(certs, testmod.NewKey(t, "ecdsa:p256").Certificate)
	}
	r := newRoot(t)
	r.secure()
	r.variable("MokListRT", efi.Shim, 6, list(certs...)...)
	s, err := Read(r.dir, false)
	if err != nil {
		t.Fatal(err)
	}
	keys := new(verify.Keyring)
	if err := s.Apply(keys); err != nil {
		t.Fatal(err)
	}
	findings, _, err := Examine(s, keys, Options{Root: r.dir})
	if err != nil || len(findings) != maxAlike+1 || findings[maxAlike].About != "3 more" ||
		findings[maxAlike].Name != "mok-unused" || findings[maxAlike].Level != Refuses {
		t.Errorf("got %+v, %v", findings, err)
	}
}

// A finding for each thing that is wrong, and none for what is right.
func TestExamine(t *testing.T) {
	t.Parallel()
	mok, other := testmod.NewKey(t, "rsa:2048"), testmod.NewKey(t, "ecdsa:p256")
	mainline := verify.Facts{
		Secondary: verify.Yes, Machine: verify.Yes, Platform: verify.Yes, LoadUEFI: verify.Yes, SecureBoot: verify.Yes,
		Blacklist: verify.Yes, PlatformModules: verify.No, MachineAlways: verify.No,
	}
	without := func(change func(*verify.Facts)) verify.Facts { f := mainline; change(&f); return f }
	good := func(r *fakeRoot) {
		r.secure()
		r.file(mokDir+"/MokListRT", 0o400, list(mok.Certificate))
		r.file(mokDir+"/MokListTrustedRT", 0o400, []byte{1})
		r.file("var/lib/dkms/mok.pub", 0o644, mok.Certificate.Raw)
		r.file("var/lib/dkms/mok.key", 0o600, mok.KeyPEM)
	}
	configs := map[string]map[string]string{
		"copies, not enforced":                 {"CONFIG_MODULE_SIG": "y"},
		"copies, enforced by the command line": {"CONFIG_MODULE_SIG": "y"},
		"copies, enforced for Secure Boot":     {"CONFIG_MODULE_SIG": "y", "CONFIG_IMA_ARCH_POLICY": "y"},
	}
	for _, test := range []struct {
		name    string
		change  func(*fakeRoot)
		facts   verify.Facts
		want    string // all findings
		command string // of the first one
	}{
		{"good", func(*fakeRoot) {}, mainline, "[]", ""},
		{"shim does not trust", func(r *fakeRoot) {
			os.Remove(filepath.Join(r.dir, mokDir, "MokListTrustedRT"))
		}, mainline, "[refuses module-key-unknown refuses mok-unused]", "mokutil --trust-mok"},
		{"no shim", func(r *fakeRoot) {
			os.RemoveAll(filepath.Join(r.dir, mokDir))
			r.variable("MokListRT", efi.Shim, 6, list(mok.Certificate)...)
		}, mainline, "[refuses module-key-unknown refuses mok-unused]", "efibootmgr -v"},
		{"no shim, Debian", func(r *fakeRoot) {
			os.RemoveAll(filepath.Join(r.dir, mokDir))
			r.variable("MokListRT", efi.Shim, 6, list(mok.Certificate)...)
		}, without(func(f *verify.Facts) { f.MachineAlways = verify.Yes }), "[]", ""},
		{"no .machine", func(*fakeRoot) {}, without(func(f *verify.Facts) { f.Machine = verify.No }),
			"[refuses module-key-unknown refuses mok-unused]", "INTEGRITY_(MACHINE"},
		{"authorities alone", func(*fakeRoot) {}, without(func(f *verify.Facts) {
			f.MachineCA, f.Trusted = verify.Yes, verify.Yes
		}), "[refuses module-key-unknown refuses mok-unused]", "CA_MACHINE_KEYRING"},
		{"not enrolled", func(r *fakeRoot) { r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw) }, mainline,
			"[refuses module-key-unknown]", "# on that machine: mokutil --import /var/lib/dkms/mok.pub"},
		{"enrolment waits", func(r *fakeRoot) {
			r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw)
			r.variable("MokNew", efi.Shim, 7, 1)
		}, mainline, "[note pending refuses module-key-unknown]", "systemctl reboot"},
		{"DKMS has another key", func(r *fakeRoot) {
			r.file("etc/dkms/framework.conf", 0o644, []byte("# mok_certificate=/x\nmok_certificate=\"/etc/keys/my.der\"\n"))
			r.file("etc/keys/my.der", 0o644, other.Certificate.Raw)
		}, mainline, "[refuses module-key-unknown]", "my.der"},
		{"key for everybody", func(r *fakeRoot) {
			r.file("usr/src/linux-6.12/certs/signing_key.pem", 0o644, mok.KeyPEM)
		}, mainline, "[leaks key-readable]", "chmod 0600 "},
		{"keys of root for everybody", func(r *fakeRoot) {
			r.file("root/mok.key", 0o644, mok.KeyPEM)
			r.file("root/MOK.der.key", 0o644, mok.KeyPEM)
		}, mainline, "[leaks key-readable leaks key-readable]", "chmod 0600 "},
		{"revoked by shim", func(r *fakeRoot) {
			r.variable("MokListXRT", efi.Shim, 6, list(mok.Certificate)...)
		}, mainline, "[refuses mok-revoked]", "# on that machine: mokutil --list-enrolled --mokx"},
		{"no certificate", func(r *fakeRoot) {
			r.file(mokDir+"/MokListRT", 0o400, efi.Append(list(mok.Certificate), efi.X509, efi.Shim, []byte("none")))
		}, mainline, "[refuses mok-unused]", "mokutil --list-enrolled"},
		{"key in a closed directory", func(r *fakeRoot) {
			path := r.file("usr/src/linux-6.12/certs/signing_key.pem", 0o644, mok.KeyPEM)
			os.Chmod(filepath.Dir(path), 0o750)
		}, mainline, "[]", ""},
		{"too large for a key", func(r *fakeRoot) {
			r.file("usr/src/linux-6.12/certs/a.pem", 0o644, append(mok.KeyPEM, make([]byte, maxKeySize)...))
		}, mainline, "[]", ""},
		{"certificate for everybody", func(r *fakeRoot) {
			r.file("usr/src/linux-6.12/certs/a.pem", 0o644, mok.CertPEM)
		}, mainline, "[]", ""},
		{"key behind the link build", func(r *fakeRoot) {
			r.file("usr/src/l/certs/signing_key.pem", 0o644, mok.KeyPEM)
			r.file("lib/modules/6.12/modules.order", 0o644, nil)
			os.Symlink("/usr/src/l", filepath.Join(r.dir, "lib/modules/6.12/build"))
		}, mainline, "[leaks key-readable]", "chmod 0600 "},
		{"no modules at all", func(r *fakeRoot) {
			r.file("proc/sys/kernel/modules_disabled", 0o644, []byte("1\n"))
		}, mainline, "[refuses modules-disabled]", "grep"},
		{"not enforced", func(r *fakeRoot) {
			r.file("sys/kernel/security/lockdown", 0o644, []byte("[none] integrity confidentiality\n"))
			r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw)
		}, mainline, "[note module-key-unknown note not-enforced]", "grep"},
		{"copies, not enforced", func(r *fakeRoot) {
			os.RemoveAll(filepath.Join(r.dir, "sys/module"))
			os.RemoveAll(filepath.Join(r.dir, "sys/kernel"))
			r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw)
		}, mainline, "[note module-key-unknown note not-enforced]", "grep"},
		{"copies, enforced for Secure Boot", func(r *fakeRoot) {
			os.RemoveAll(filepath.Join(r.dir, "sys/module"))
			os.RemoveAll(filepath.Join(r.dir, "sys/kernel"))
			r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw)
		}, mainline, "[refuses module-key-unknown]", "mokutil --import"},
		{"copies, enforced by the command line", func(r *fakeRoot) {
			os.RemoveAll(filepath.Join(r.dir, "sys/module"))
			os.RemoveAll(filepath.Join(r.dir, "sys/kernel"))
			r.file("proc/cmdline", 0o444, []byte("quiet module.sig_enforce=1\n"))
			r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw)
		}, mainline, "[refuses module-key-unknown]", "mokutil --import"},
		{"copies, nobody knows", func(r *fakeRoot) {
			os.RemoveAll(filepath.Join(r.dir, "sys/module"))
			os.RemoveAll(filepath.Join(r.dir, "sys/kernel"))
			r.file("var/lib/dkms/mok.pub", 0o644, other.Certificate.Raw)
		}, mainline, "[refuses module-key-unknown]", "mokutil --import"},
		{"revoked, not enforced", func(r *fakeRoot) {
			r.file("sys/kernel/security/lockdown", 0o644, []byte("[none] integrity confidentiality\n"))
			r.variable("MokListXRT", efi.Shim, 6, list(mok.Certificate)...)
		}, mainline, "[note not-enforced refuses mok-revoked]", "grep"},
		{"malformed dbx", func(r *fakeRoot) { r.variable("dbx", efi.Security, 7, 1, 2, 3) }, mainline,
			"[refuses malformed-list]", "mokutil --dbx"},
		{"hashes with times", func(r *fakeRoot) {
			r.variable("dbx", efi.Security, 7, efi.Append(nil, efi.X509SHA256, efi.Security, make([]byte, 48))...)
		}, mainline, "[note ineffective-hashes]", "mokutil --dbx"},
		{"revoked", func(r *fakeRoot) { r.variable("dbx", efi.Security, 7, list(mok.Certificate)...) }, mainline,
			"[refuses mok-revoked]", "mokutil --dbx"},
	} {
		r := newRoot(t)
		good(r)
		test.change(r)
		s, err := Read(r.dir, false)
		if err != nil {
			t.Fatal(err)
		}
		keys := new(verify.Keyring)
		if err := errors.Join(keys.Follow(test.facts), s.Apply(keys)); err != nil {
			t.Fatal(err)
		}
		findings, problems, err := Examine(s, keys, Options{Root: r.dir, IsKey: isKey, Config: configs[test.name]})
		if err != nil || len(problems)+len(s.Problems) > 0 {
			t.Errorf("%s: %v, %v, %v", test.name, problems, s.Problems, err)
		}
		if got := fmt.Sprint(names(findings)); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
		for i, f := range findings {
			if f.Text == "" || f.Meaning == "" || f.Command == "" || f.About == "" || strings.Contains(f.Text, "PRIVATE") {
				t.Errorf("%s: %+v", test.name, f)
			}
			if i == 0 && !strings.Contains(f.Command, test.command) {
				t.Errorf("%s: the command is %q, want one with %q", test.name, f.Command, test.command)
			}
		}
	}
}
