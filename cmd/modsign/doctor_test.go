package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/testmod"
)

// ownedMachine is the root directory of a machine with Debian's newest kernel and Secure Boot,
// whose owner has enrolled a key; and a module that is signed with it.
func ownedMachine(t *testing.T, key *testmod.Key) (root, version, module string) {
	t.Helper()
	kernels := testmod.Kernels(t)
	kernel := kernels[len(kernels)-1]
	root, err := os.MkdirTemp("", "machine") // others get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	value := func(value []byte) []byte { return append([]byte{6, 0, 0, 0}, value...) }
	read := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	const vars = "sys/firmware/efi/efivars/"
	for name, data := range map[string][]byte{
		"boot/vmlinuz-" + kernel.Version:                      read(kernel.Image),
		"boot/config-" + kernel.Version:                       read(kernel.Config),
		"lib/modules/" + kernel.Version + "/modules.order":    nil,
		"sys/module/module/parameters/sig_enforce":            []byte("Y\n"),
		"sys/kernel/security/lockdown":                        []byte("none [integrity] confidentiality\n"),
		"proc/sys/kernel/modules_disabled":                    []byte("0\n"),
		vars + "SecureBoot-" + efi.Global.String():            value([]byte{1}),
		vars + "SetupMode-" + efi.Global.String():             value([]byte{0}),
		"sys/firmware/efi/mok-variables/MokListRT":            efi.Append(nil, efi.X509, efi.Shim, key.Certificate.Raw),
		"sys/firmware/efi/mok-variables/MokListTrustedRT":     {1},
		"var/lib/dkms/mok.pub":                                key.Certificate.Raw,
		"var/lib/dkms/mok.key":                                key.KeyPEM,
		"usr/src/linux-" + kernel.Version + "/certs/note.txt": nil,
	} {
		path := filepath.Join(root, name)
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, "MokListRT") || strings.HasSuffix(name, ".key") {
			mode = 0o400
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, mode)); err != nil {
			t.Fatal(err)
		}
	}
	module = filepath.Join(root, "hello.ko")
	data := read("../../testdata/modules/amd64-6.12/plain/hello.ko")
	private, cert := key.Files(t)
	if err := errors.Join(os.WriteFile(module, data, 0o644), os.Chmod(root, 0o755)); err != nil {
		t.Fatal(err)
	}
	if r := modsign(t, "sign", "--quiet", "--key", private, "--cert", cert, module); r.code != 0 {
		t.Fatal(r.stderr)
	}
	return root, kernel.Version, module
}

// What root sees of a machine whose key is enrolled, and then of one whose key leaks.
func TestDoctor(t *testing.T) {
	t.Parallel()
	root, version, module := ownedMachine(t, testmod.NewKey(t, "rsa:2048"))
	doctor := func(args ...string) ran {
		return modsign(t, append([]string{"doctor", "--root", root, "--installed", version}, args...)...)
	}
	r := doctor()
	for _, want := range []string{
		"signatures enforced:  yes (module.sig_enforce on, lockdown integrity)\n", "Secure Boot:          on\n",
		"MokListTrustedRT:     yes\n", "MokListRT:            1 certificate\n", ".builtin_trusted_keys:\n",
		".machine:\n  modsign test key rsa:2048: ",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("doctor does not say %q", want)
		}
	}
	if r.code != 0 || !strings.HasSuffix(r.stderr, "nothing to mend\n") {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	image := filepath.Join(root, "boot/vmlinuz-"+version)
	judge := []string{"verify", "--kernel", image, "--root", root, "--mok", "efivars", "--all", module}
	if r := modsign(t, judge...); r.code != 0 || !strings.Contains(r.stdout, "trusted, signed by") {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}

	leak := filepath.Join(root, "usr/src/linux-"+version, "certs/signing_key.pem")
	if err := os.WriteFile(leak, testmod.NewKey(t, "ecdsa:p256").KeyPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	// So is one in a store, which is no PEM.
	store := filepath.Join(filepath.Dir(leak), "mok.key")
	data, err := os.ReadFile("../../keygen/keyscan/testdata/nss.p12")
	if err == nil {
		err = os.WriteFile(store, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Without Secure Boot the kernel reads no machine owner key.
	variable := filepath.Join(root, "sys/firmware/efi/efivars/SecureBoot-"+efi.Global.String())
	if err := os.WriteFile(variable, []byte{6, 0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	r = doctor("--json")
	var names []string
	for line := range strings.Lines(r.stdout) {
		var o struct {
			Type       string `json:"message_type"`
			Name       string
			Command    string
			SecureBoot *bool `json:"secure_boot"`
		}
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		if o.Type == "finding" {
			names = append(names, o.Name)
		} else if o.SecureBoot == nil || *o.SecureBoot {
			t.Errorf("the machine is %s", line)
		}
		if o.Name == "key-readable" && o.Command != "chmod 0600 "+leak && o.Command != "chmod 0600 "+store {
			t.Errorf("the command is %q", o.Command)
		}
	}
	want := []string{"mok-unused", "module-key-unknown", "key-readable", "key-readable"}
	if r.code != 4 || !slices.Equal(names, want) {
		t.Errorf("exit code %d, findings %q: %s", r.code, names, r.stderr)
	}
	if r := modsign(t, judge...); r.code != 4 || !strings.Contains(r.stderr, "Secure Boot is off") {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

// Lists in files, without the machine they are of.
func TestVerifyRings(t *testing.T) {
	t.Parallel()
	key := testmod.NewKey(t, "rsa:2048")
	root, version, module := ownedMachine(t, key)
	image := filepath.Join(root, "boot/vmlinuz-"+version)
	der := filepath.Join(root, "var/lib/dkms/mok.pub")
	list := filepath.Join(root, "sys/firmware/efi/mok-variables/MokListRT")
	mainline := filepath.Join(root, "config")
	config := "CONFIG_SECONDARY_TRUSTED_KEYRING=y\nCONFIG_INTEGRITY_PLATFORM_KEYRING=y\nCONFIG_LOAD_UEFI_KEYS=y\n" +
		"CONFIG_HAVE_ARCH_GET_SECUREBOOT=y\n"
	if err := os.WriteFile(mainline, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(root, "other-config")
	own, err := os.ReadFile(filepath.Join(root, "boot/config-"+version))
	if err != nil {
		t.Fatal(err)
	}
	own = append([]byte("# Linux/x86 5.1.2 Kernel Configuration\n"), own...)
	if err := os.WriteFile(other, own, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args  string
		code  int
		words string
	}{
		{"--kernel IMAGE", 4, "no trusted certificate"},
		{"--kernel IMAGE --mok DER", 0, "all trusted"},
		{"--kernel IMAGE --mok LIST", 0, "all trusted"},
		{"--kernel IMAGE --db DER", 0, "all trusted"}, // Debian's kernels look into .platform
		{"--kernel IMAGE --mok DER --dbx DER", 0, "all trusted"},
		{"--kernel IMAGE --secondary DER", 4, ".secondary_trusted_keys does not take it"},
		{"--mok DER", 0, "as if shim had set MokListTrustedRT"},
		{"--mok DER --blacklist DER", 4, "revoked"},
		{"--mok DER --config CONFIG", 4, "is in .platform: kernels of kernel.org do not"},
		{"--db DER", 4, "is in .platform: kernels of kernel.org do not"},
		{"--kernel IMAGE --mok DER --config OTHER", 0, "is the configuration of Linux 5.1.2, and the kernel is " + version},
		{"--mok DER --config /dev/zero", 1, "/dev/zero: not a kernel configuration"},
		{"--mok CONFIG", 1, "no certificate found"},
		{"--mok /absent", 1, "no such file"},
		{"--running --root ROOT", 2, "--running asks this machine's kernel"},
	} {
		names := strings.NewReplacer("IMAGE", image, "DER", der, "LIST", list, "CONFIG", mainline, "OTHER", other,
			"ROOT", root)
		r := modsign(t, append(append([]string{"verify"}, strings.Fields(names.Replace(test.args))...), module)...)
		if r.code != test.code || !strings.Contains(r.stdout+r.stderr, test.words) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s%s", test.args, r.code, test.code, test.words, r.stdout, r.stderr)
		}
	}
}

// An ordinary user does not see shim's table and the running kernel's keyrings: modsign says
// so, and gives no verdict that these could change.
func TestDoctorOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		testmod.Missing(t, "root", "run as root: the files are another user's")
	}
	root, version, module := ownedMachine(t, testmod.NewKey(t, "rsa:2048"))
	w := newWorld(t)
	as := func(args ...string) (code int, output string) {
		t.Helper()
		out, err := exec.Command(testmod.Program(t, "setpriv", "util-linux"), append([]string{
			"--reuid=65534", "--regid=65534", "--clear-groups", w.program,
		}, args...)...).CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode(), string(out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return 0, string(out)
	}
	image := filepath.Join(root, "boot/vmlinuz-"+version)
	for _, test := range []struct {
		code  int
		words []string
		args  []string
	}{
		{3, []string{"could not read " + root + "/sys/firmware/efi/mok-variables/MokListRT: permission denied",
			"nothing to mend in what could be read", "which was not found in what could be read"},
			[]string{"doctor", "--root", root, "--installed", version}},
		{3, []string{"no verdict: the key may be in .machine, and MokListRT could not be read"},
			[]string{"verify", "--kernel", image, "--root", root, "--mok", "efivars", module}},
		{3, []string{"could not read keyring .secondary_trusted_keys: /proc/keys does not show it",
			"no verdict: the key may be in .builtin_trusted_keys, which could not be read"},
			[]string{"verify", "--running", module}},
		{1, []string{": image of kernel " + version + ", and "}, []string{"verify", "--kernel", image, "--running", module}},
		{1, []string{": image of kernel " + version + ", and "}, []string{"doctor", "--kernel", image, "--no-keys"}},
	} {
		code, output := as(test.args...)
		for _, words := range test.words {
			if code != test.code || !strings.Contains(output, words) {
				t.Errorf("%q: exit code %d, want %d and %q\n%s", test.args, code, test.code, words, output)
			}
		}
	}
}
