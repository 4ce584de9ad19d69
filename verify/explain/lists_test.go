package explain

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/verify"
)

func TestParseKnown(t *testing.T) {
	id, sum := strings.Repeat("ab", 20), strings.Repeat("cd", 32)
	for text, want := range map[string]int{
		"# comment\n\n" + id + " kernel/a.ko\n":                               1,
		strings.ToUpper(id) + "\ta\n" + sum + "      12 b\n":                  2,
		"modsign hash list 1 6.12.0\n" + sum + "    1234 kernel/fs/a.ko\n1\n": 1,
		"":                     0,
		"# comment alone\n":    0,
		id + "\n":              0, // no name
		"ab kernel/a.ko\n":     0, // no build id is as short
		id + " a\nnot hex b\n": 0,
	} {
		k, err := ParseKnown(strings.NewReader(text))
		if k.Len() != want || (err == nil) != (want > 0) {
			t.Errorf("%q has %d entries, expected %d: %v", text, k.Len(), want, err)
		}
	}
	k, err := ParseKnown(strings.NewReader(strings.ToUpper(id) + " a.ko\n"))
	if err != nil {
		t.Fatal(err)
	}
	if name, ok := k.find(id); !ok || name != "a.ko" {
		t.Errorf("found %q", name)
	}
	if _, err := ParseKnown(strings.NewReader(strings.Repeat("# comment\n", maxKnown+1))); err == nil {
		t.Error("there is no limit")
	}
}

func FuzzParseKnown(f *testing.F) {
	f.Add([]byte("# comment\n" + strings.Repeat("ab", 20) + " kernel/a.ko\n"))
	f.Add([]byte("modsign hash list 1 6.12.0\n" + strings.Repeat("cd", 32) + "    1234 kernel/fs/a.ko\n1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKnown(bytes.NewReader(b))
		if (err == nil) != (k.Len() > 0) || k.Len() > len(b) {
			t.Errorf("%d entries, %v", k.Len(), err)
		}
	})
}

const symvers = "0x12345678\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n0x00000001\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n"

func TestSymvers(t *testing.T) {
	path := testmod.WriteFile(t, "Module.symvers", []byte(symvers))
	known, err := readSymvers(path)
	if err != nil || len(known) != 2 || known["module_layout"] != 0x12345678 || known["_printk"] != 1 {
		t.Errorf("%v, %v", known, err)
	}
	for _, bad := range []string{"text\n", "0xzz\ta\tb\n", "0x123456789\ta\tb\n"} {
		if known, err := readSymvers(testmod.WriteFile(t, "Module.symvers", []byte(bad))); err == nil {
			t.Errorf("%q gives %v", bad, known)
		}
	}
	c := crcs{known: known}
	versions := []module.SymbolVersion{{Name: "_printk", CRC: 2}, {Name: layout, CRC: 3}, {Name: "other", CRC: 1}}
	d, missing, err := c.compare(context.Background(), versions, "")
	if err != nil || d == nil || d.symbol != layout || len(missing) != 1 {
		t.Errorf("module_layout does not come first: %+v, %q, %v", d, missing, err)
	}
}

func FuzzSymvers(f *testing.F) {
	f.Add([]byte(symvers))
	f.Fuzz(func(t *testing.T, b []byte) {
		known, err := parseSymvers(bytes.NewReader(b))
		if err == nil && len(known) > len(b) {
			t.Errorf("%d symbols in %d bytes", len(known), len(b))
		}
	})
}

// The policy of a running kernel, and of another one by its configuration and command line.
func TestPolicy(t *testing.T) {
	const lsm = "CONFIG_MODULE_SIG=y\nCONFIG_SECURITY_LOCKDOWN_LSM=y\n"
	none, integrity := "[none] integrity confidentiality", "none [integrity] confidentiality"
	for _, test := range []struct {
		enforce, lockdown, cmdline, config string
		want                               Enforcement
	}{
		{"Y", none, "", "", SigEnforce},
		{"N", none, "", "", Tolerant},
		{"N", integrity, "", "", Lockdown},
		{"N", "", "lockdown=integrity", "", Lockdown}, // securityfs is not mounted
		{"N", none, "lockdown=integrity", "", Tolerant},
		{"", "", "", "", Unknown},
		{"", "", "", "CONFIG_MODULE_SIG=y\n", Tolerant},
		{"", "", "", "CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_FORCE=y\n", SigEnforce},
		{"", "", "", "CONFIG_MODULES=y\n", NoSignatures},
		{"", "", "", "CONFIG_MODULE_HASHES=y\nCONFIG_MODULE_SIG_FORCE=y\n", SigEnforce},
		{"", "", "", "CONFIG_MODULE_HASHES=y\n", Tolerant},
		{"", "", "module.sig_enforce=1", "CONFIG_MODULE_SIG=y\n", SigEnforce},
		{"", "", "module.sig_enforce", "CONFIG_MODULE_SIG=y\n", SigEnforce},
		{"", "", "module.sig_enforce=0", "CONFIG_MODULE_SIG=y\n", Tolerant},
		{"", "", "lockdown=confidentiality", lsm, Lockdown},
		{"", "", "lockdown=integrity", "CONFIG_MODULE_SIG=y\n", Tolerant},
		{"", "", "", lsm + "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y\n", Lockdown},
		{"", "", "lockdown=integrity lsm=capability", lsm, Tolerant},
		{"", "", "lockdown=integrity lsm=yama,lockdown", lsm + "CONFIG_LSM=yama\n", Lockdown},
		{"", "", "lockdown=integrity", lsm + "CONFIG_LSM=yama\n", Tolerant},
		{"", "", "lockdown=integrity lsm=capability", lsm + "CONFIG_SECURITY_LOCKDOWN_LSM_EARLY=y\n", Lockdown},
		{"", "", "module.sig-enforce=1", "CONFIG_MODULE_SIG=y\n", SigEnforce},
		{"", "", `"module.sig_enforce=1"`, "CONFIG_MODULE_SIG=y\n", SigEnforce},
		{"", "", "module.sig_enforce=1 module.sig_enforce=0", "CONFIG_MODULE_SIG=y\n", SigEnforce},
		{"", "", "-- module.sig_enforce=1", "CONFIG_MODULE_SIG=y\n", Tolerant},
		{"", "", `foo="a module.sig_enforce=1"`, "CONFIG_MODULE_SIG=y\n", Tolerant},
	} {
		k := &Kernel{}
		if test.config != "" {
			k.Config = make(map[string]string)
			for line := range strings.Lines(test.config) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				k.Config[name] = value
			}
		}
		p := k.policyOf(test.enforce, test.lockdown, test.cmdline, "0")
		if p.Enforcement != test.want || len(p.Evidence) == 0 || p.Disabled {
			t.Errorf("%+v: %+v", test, p)
		}
	}
	if p := new(Kernel).policyOf("", "", "quiet module_blacklist=a,b", "1"); !p.Disabled || len(p.Blacklist) != 2 {
		t.Errorf("%+v", p)
	}
	for cmdline, want := range map[string]bool{
		"nomodule": true, "nomodule=0": false, "nomodule nomodule=n": false, "-- nomodule": false,
		"sysctl.kernel.modules_disabled=1": true, "sysctl/kernel/modules_disabled=1 quiet": true,
		"sysctl.kernel.modules-disabled=1": false, "sysctl.kernel.modules_disabled=0": false,
	} {
		if p := new(Kernel).policyOf("", "", cmdline, ""); p.Disabled != want {
			t.Errorf("%s: %+v", cmdline, p)
		}
	}
	for _, cmdline := range []string{"module-blacklist=a,b", `module_blacklist="a,b"`, `"module_blacklist=a,b"`} {
		if p := new(Kernel).policyOf("", "", cmdline, ""); len(p.Blacklist) != 2 || p.Blacklist[1] != "b" {
			t.Errorf("%s: %+v", cmdline, p)
		}
	}
}

// Whoever gives machine owner keys has Secure Boot taken to be on: for the keys, and so for
// enforcement.
func TestPolicySecureBoot(t *testing.T) {
	config := map[string]string{"CONFIG_MODULE_SIG": "y", "CONFIG_IMA_ARCH_POLICY": "y"}
	mok := []verify.List{{}}
	for _, test := range []struct {
		firmware *verify.Firmware
		want     Enforcement
	}{
		{nil, Tolerant},
		{&verify.Firmware{}, Tolerant},
		{&verify.Firmware{MokList: mok}, SigEnforce},
		{&verify.Firmware{MokList: mok, SecureBoot: verify.No}, Tolerant},
		{&verify.Firmware{SecureBoot: verify.Yes}, SigEnforce},
	} {
		k := &Kernel{Source: Source{Config: config, Firmware: test.firmware}}
		p := k.policyOf("", "", "", "")
		if p.Enforcement != test.want {
			t.Errorf("%+v: %+v", test.firmware, p)
		}
		if unless := k.unless(); (test.firmware == nil || len(test.firmware.MokList) == 0 &&
			test.firmware.SecureBoot == verify.Unknown) != strings.HasPrefix(unless, "with Secure Boot ") {
			t.Errorf("%+v: %s", test.firmware, unless)
		}
	}
}

// A name finds what modprobe would load: what modules.dep has, or without it what there is.
func TestFind(t *testing.T) {
	s := source(t, testmod.NewKey(t, "ecdsa:p256"))
	k, err := Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if path, err := k.Find("ring"); err != nil || path != filepath.Join(s.Modules, "kernel/ring.ko") {
		t.Errorf("without modules.dep: %s, %v", path, err)
	}
	dep := "updates/dkms/a-b.ko.xz:\nkernel/ring.ko: kernel/hello.ko\n"
	if err := os.WriteFile(filepath.Join(s.Modules, "modules.dep"), []byte(dep), 0o644); err != nil {
		t.Fatal(err)
	}
	if path, err := k.Find("a_b"); err != nil || path != filepath.Join(s.Modules, "updates/dkms/a-b.ko.xz") {
		t.Errorf("with modules.dep: %s, %v", path, err)
	}
	if _, err := k.Find("hello"); err == nil {
		t.Error("a module that is not in modules.dep")
	}
}

// Commands are for a shell: names with spaces and quotes are one word.
func TestCommands(t *testing.T) {
	key := testmod.NewKey(t, "ecdsa:p256")
	dir := filepath.Join(t.TempDir(), "it's a directory")
	path := filepath.Join(dir, "m.ko")
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.WriteFile(path, append(sign(t, key, real(t, "hello")), '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	k, err := Open(t.Context(), source(t, key))
	if err != nil {
		t.Fatal(err)
	}
	r := k.Module(t.Context(), path)
	if len(r.Causes) != 1 || r.Causes[0].ID != DataAfterSignature {
		t.Fatalf("causes %+v", r.Causes)
	}
	testmod.Run(t, "sh", "-c", r.Causes[0].Mend.Command)
	if r := k.Module(t.Context(), path); r.Verdict != Loads {
		t.Errorf("after %s: %s, %+v", r.Causes[0].Mend.Command, r.Verdict, r.Causes)
	}
}
