//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/modsign/modsign/internal/efi"
	"github.com/modsign/modsign/internal/module"
	"github.com/modsign/modsign/internal/testcms"
	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/verify"
	"github.com/modsign/modsign/verify/explain"
	"github.com/modsign/modsign/verify/machine"
)

// An efiVariable is in the memory of a machine's firmware.
type efiVariable struct {
	name       string
	owner      efi.GUID
	attributes uint32
	value      []byte
}

const (
	persistent    = 7    // non-volatile, boot services, run time
	authenticated = 0x27 // and by signed writes alone
)

// variableStore writes the flash memory of OVMF with some variables in it: a header of the
// volume, one of the store, and then headers of variables with names and values
// (edk2: MdeModulePkg/Include/Guid/VariableFormat.h).
func variableStore(t testing.TB, variables []efiVariable) string {
	t.Helper()
	flash := read(t, "/usr/share/OVMF/OVMF_VARS_4M.fd")
	const storeHeader, header = 28, 60
	at := int(binary.LittleEndian.Uint16(flash[0x30:])) + storeHeader
	for _, v := range variables {
		b := make([]byte, header)
		name := append(utf16.Encode([]rune(v.name)), 0)
		binary.LittleEndian.PutUint16(b, 0x55aa)
		b[2] = 0x3f // it is whole
		binary.LittleEndian.PutUint32(b[4:], v.attributes)
		binary.LittleEndian.PutUint32(b[36:], uint32(2*len(name)))
		binary.LittleEndian.PutUint32(b[40:], uint32(len(v.value)))
		copy(b[44:], v.owner[:])
		for _, r := range name {
			b = binary.LittleEndian.AppendUint16(b, r)
		}
		b = append(b, v.value...)
		copy(flash[at:], b)
		at += (len(b) + 3) &^ 3
	}
	path := filepath.Join(t.TempDir(), "vars.fd")
	if err := os.WriteFile(path, flash, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// secureMachine are the arguments of QEMU for a machine with EFI and its variables.
func secureMachine(vars string) []string {
	return []string{
		"-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=" + vars,
	}
}

// signImage signs a kernel image for Secure Boot.
func signImage(t testing.TB, key *testmod.Key, image string) string {
	t.Helper()
	private, cert := key.Files(t)
	out := filepath.Join(t.TempDir(), filepath.Base(image))
	testmod.Run(t, testmod.Program(t, "sbsign", "sbsigntool"), "--key", private, "--cert", cert, "--output", out, image)
	return out
}

// moduleOf returns a module of Debian's kernel, decompressed.
func moduleOf(t testing.TB, kernel testmod.Kernel, name string) []byte {
	t.Helper()
	at := slices.IndexFunc(kernel.Modules, func(path string) bool { return strings.Contains(path, "/"+name+".ko") })
	if at < 0 {
		t.Fatalf("%s has no module %s", kernel.Version, name)
	}
	return decompress(t, kernel.Modules[at])
}

// withoutSignature takes the signature off a module.
func withoutSignature(t testing.TB, data []byte) []byte {
	t.Helper()
	layers, err := module.Layers(bytes.NewReader(data), int64(len(data)))
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d signatures, %v", len(layers), err)
	}
	return data[:layers[0].Offset:layers[0].Offset]
}

// certificates are a list of the firmware.
func certificates(keys ...*testmod.Key) (list []byte) {
	for _, key := range keys {
		list = efi.Append(list, efi.X509, efi.Shim, key.Certificate.Raw)
	}
	return list
}

// owner makes a key with a name of its own.
func owner(t testing.TB, name string) *testmod.Key {
	t.Helper()
	return ownerFor(t, name, false, x509.KeyUsageDigitalSignature)
}

// ownerFor is owner with what the certificate is for.
func ownerFor(t testing.TB, name string, authority bool, usage x509.KeyUsage) *testmod.Key {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "modsign EFI test: " + name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte("key " + name),
		KeyUsage: usage, BasicConstraintsValid: true, IsCA: authority, SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testmod.Key{Private: private, Certificate: cert}
}

// efivars writes variables as efivarfs shows them, below a root directory.
func efivars(t testing.TB, root string, variables []efiVariable) {
	t.Helper()
	dir := filepath.Join(root, "sys/firmware/efi/efivars")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, v := range variables {
		data := append(binary.LittleEndian.AppendUint32(nil, v.attributes), v.value...)
		if err := os.WriteFile(filepath.Join(dir, v.name+"-"+v.owner.String()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// program builds modsign as a static program.
func program(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "modsign")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/modsign/modsign/cmd/modsign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// packGuest writes an initramfs with cases, files and commands.
func packGuest(t testing.TB, initrd string, cases []Case, files map[string]string, commands [][]string) {
	t.Helper()
	a := newInitramfs(t, initrd, loader(t, t.TempDir()))
	a.addJSON(t, "commands.json", commands)
	list := slices.Clone(cases)
	for i := range list {
		list[i].File, list[i].Data = fmt.Sprintf("%d.ko", i), nil
		a.add("cases/"+list[i].File, syscall.S_IFREG|0o644, cases[i].Data)
	}
	a.addJSON(t, "cases/list.json", list)
	for name, path := range files {
		a.add(name, syscall.S_IFREG|0o755, read(t, path))
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
}

// Debian's own kernel with Secure Boot: keys of db, MokListRT, and what dbx and MokListXRT
// reject. modsign predicts each load from the image and the variables, and doctor, inside of the
// machine, finds each key in the keyring that was predicted.
func TestSecureBoot(t *testing.T) {
	kernels := testmod.Kernels(t)
	kernel := kernels[len(kernels)-1]
	if _, err := os.Stat("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"); err != nil {
		testmod.Missing(t, "OVMF", "apt-get install ovmf")
	}
	platform := testmod.NewKey(t, "rsa:2048")
	onDB, mok, unknown := owner(t, "db"), owner(t, "MOK"), owner(t, "unknown")
	hashed, timed, revoked := owner(t, "hash"), owner(t, "hash and time"), owner(t, "revoked")
	tbs := func(key *testmod.Key) []byte {
		sum := sha256.Sum256(key.Certificate.RawTBSCertificate)
		return sum[:]
	}
	payload := withoutSignature(t, moduleOf(t, kernel, "fs/nls/nls_cp437"))
	listed := testcms.Signed(t, mok, append(slices.Clone(payload), 0))
	sum := sha256.Sum256(listed)
	dbx := efi.Append(nil, efi.X509SHA256, efi.Security, append(tbs(timed), make([]byte, 16)...))
	dbx = efi.Append(dbx, efi.X509SHA256, efi.Security, tbs(onDB))
	dbx = efi.Append(append(dbx, certificates(revoked)...), efi.SHA256, efi.Security, sum[:])
	variables := []efiVariable{
		{"PK", efi.Global, authenticated, certificates(platform)},
		{"KEK", efi.Global, authenticated, certificates(platform)},
		{"db", efi.Security, authenticated, certificates(platform, onDB)},
		{"dbx", efi.Security, authenticated, dbx},
		{"MokListRT", efi.Shim, persistent, certificates(mok, hashed, timed, revoked)},
		{"MokListXRT", efi.Shim, persistent, efi.Append(nil, efi.X509SHA256, efi.Shim, tbs(hashed))},
	}
	cases := []Case{
		{Name: "efivarfs", Data: moduleOf(t, kernel, "fs/efivarfs/efivarfs"), Keep: true},
		{Name: "built in", Data: moduleOf(t, kernel, "fs/nls/nls_cp437")},
		{Name: "db", Data: testcms.Signed(t, onDB, payload)},
		{Name: "MOK", Data: testcms.Signed(t, mok, payload)},
		{Name: "MOK, hash on MokListXRT", Data: testcms.Signed(t, hashed, payload)},
		{Name: "MOK, hash with time on dbx", Data: testcms.Signed(t, timed, payload)},
		{Name: "MOK, certificate on dbx", Data: testcms.Signed(t, revoked, payload)},
		{Name: "unknown", Data: testcms.Signed(t, unknown, payload)},
		{Name: "hash of the module on dbx", Data: listed},
	}
	image := signImage(t, platform, kernel.Image)
	files := map[string]string{
		"modsign": program(t), "vmlinuz": kernel.Image, "config": kernel.Config,
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	commands := [][]string{{"/modsign", "doctor", "--kernel", "/vmlinuz", "--config", "/config", "--json"}}
	if full() { // it takes its time in an emulated machine
		commands = append(commands, []string{"/modsign", "explain", "--kernel", "/vmlinuz", "--running",
			"--config", "/config", "--json", "/cases/3.ko", "/cases/7.ko"})
	}
	packGuest(t, initrd, cases, files, commands)
	console := boot(t, image, initrd, secureMachine(variableStore(t, variables))...)
	root := t.TempDir()
	efivars(t, root, append(variables,
		efiVariable{"SecureBoot", efi.Global, 6, []byte{1}}, efiVariable{"SetupMode", efi.Global, 6, []byte{0}}))
	keys := predicted(t, kernel.Image, kernel.Config, kernel.Version, root)
	agrees(t, console, cases, keys)
	causes := explains(t, console, cases, kernel, keys, root)
	for name, want := range map[string]explain.ID{
		"MOK": "", "MOK, hash on MokListXRT": explain.KeyDropped, "unknown": explain.UnknownKey,
		"hash of the module on dbx": explain.ModuleBlacklisted,
	} {
		if causes[name] != want {
			t.Errorf("%s: the cause is %q, expected %q", name, causes[name], want)
		}
	}
	if !full() {
		return
	}
	// In the machine, of the running kernel.
	results, _, err := fromLoader[result](console, "modsign-result")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"path":"/cases/3.ko","verdict":"loads"`, `"path":"/cases/7.ko","verdict":"refused"`, `"id":"unknown-key"`,
		`"enforcement":"sig_enforce"`,
	} {
		if !strings.Contains(results[1].Output, want) {
			t.Errorf("explain does not say %s in the machine, but %s", want, results[1].Output)
		}
	}
}

// predicted returns the keyrings of a kernel that boots on a machine whose variables are files
// below a root directory.
func predicted(t testing.TB, image, config, release, root string) *verify.Keyring {
	t.Helper()
	c, err := kbuild.OpenConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	state, err := machine.Read(root, false)
	if err != nil {
		t.Fatal(err)
	}
	keys := new(verify.Keyring)
	err = errors.Join(keys.AddImage(image), keys.Follow(verify.ConfigFacts(release, c.Bool)), state.Apply(keys))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// doctored is what doctor says of the machine.
type doctored struct {
	Type           string `json:"message_type"`
	SecureBoot     *bool  `json:"secure_boot"`
	ShimTable      bool   `json:"shim_table"`
	MokListTrusted *bool  `json:"mok_list_trusted"`
	Keys           []struct{ Keyring, Certificate, Problem string }
}

// agrees compares a machine with what was predicted: each load, and the keyrings in which
// doctor, inside of the machine, finds the keys. It returns what doctor says.
func agrees(t *testing.T, console []byte, cases []Case, keys *verify.Keyring) (said doctored) {
	t.Helper()
	verdicts, err := parseConsole(console, cases)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(console))
	}
	results, _, err := fromLoader[result](console, "modsign-result")
	if err != nil || len(results) == 0 {
		t.Fatal(results, err)
	}
	for i, v := range verdicts {
		r := verify.Module(bytes.NewReader(cases[i].Data), int64(len(cases[i].Data)), keys)
		if r.Errno != v.Errno || !logged(v.Log, r.Dmesg) {
			t.Errorf("%s: the kernel says %d (%v) and logs %q; verify says %s, %d (%v), %q, %v", v.Name, int(v.Errno), v.Errno,
				v.Log, r.Verdict, int(r.Errno), r.Errno, r.Dmesg, r.Err)
		}
		t.Logf("%s: %v, %s", v.Name, v.Errno, r.Verdict)
	}
	for line := range strings.Lines(results[0].Output) {
		if strings.HasPrefix(line, "{") && strings.Contains(line, `"message_type":"machine"`) {
			if err := json.Unmarshal([]byte(line), &said); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got, want []string
	for _, k := range said.Keys {
		if strings.Contains(k.Problem, "running kernel") {
			t.Errorf("doctor: %+v", k)
		}
		got = append(got, k.Keyring+" "+k.Certificate)
	}
	for _, k := range keys.Known() {
		want = append(want, string(k.Ring)+" "+k.Name)
	}
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("doctor finds\n%q, predicted was\n%q\n%s", got, want, results[0].Output)
	}
	return said
}
