//go:build kerneltest

package kerneltest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modsign/modsign/internal/testmod"
	"github.com/modsign/modsign/kbuild"
	"github.com/modsign/modsign/keygen"
	"github.com/modsign/modsign/verify"
)

// An addition is a certificate that root adds to .secondary_trusted_keys.
type addition struct {
	name  string
	errno syscall.Errno // of add_key
}

// certified makes an RSA key with a certificate by an issuer. Another key may sign it, which is
// then no certificate by the issuer.
func certified(t testing.TB, name string, keyID []byte, issuer *keygen.Pair, signs crypto.Signer) *keygen.Pair {
	t.Helper()
	pair, err := keygen.Generate(keygen.RSA2048, keygen.DefaultTemplate())
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "modsign kernel test: " + name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), SubjectKeyId: keyID,
		SignatureAlgorithm: x509.SHA512WithRSA,
	}
	parent := *issuer.Certificate
	parent.PublicKey = signs.Public()
	der, err := x509.CreateCertificate(rand.Reader, template, &parent, pair.Signer.Public(), signs)
	if err != nil {
		t.Fatal(err)
	}
	if pair.Certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return pair
}

// takesKeys has root add certificates to .secondary_trusted_keys, which takes those that a key
// vouches for that it has, and compares what loads before and after. With --full, modsign verify
// --running in the machine has to agree. byBuiltin is a kernel in which only built-in keys vouch.
func takesKeys(t *testing.T, tree *Tree, pairs keys, byBuiltin bool) {
	builtin := pairs[keygen.RSA2048.String()]
	added := make(keys)
	added["added"] = certified(t, "added", []byte("an added key"), builtin, builtin.Signer)
	added["without a key id"] = certified(t, "added without a key id", nil, builtin, builtin.Signer)
	first := added["added"]
	added["by an added key"] = certified(t, "by an added key", []byte("a second one"), first, first.Signer)
	for _, name := range []string{"stranger", "modsign kernel test: " + keygen.RSA2048.String()} {
		cn, err := keygen.NewAttribute("CN", name)
		if err != nil {
			t.Fatal(err)
		}
		template := keygen.DefaultTemplate()
		template.Subject = []keygen.Attribute{cn}
		if added[name], err = keygen.Generate(keygen.RSA2048, template); err != nil {
			t.Fatal(err)
		}
	}
	added["forged"] = certified(t, "forged", []byte("a forged one"), builtin, added["stranger"].Signer)
	second := addition{"by an added key", 0}
	if byBuiltin {
		second.errno = syscall.ENOKEY
	}
	additions := []addition{{"added", 0}, {"without a key id", 0}, second, {"stranger", syscall.ENOKEY},
		{"forged", syscall.EINVAL}, {"modsign kernel test: " + keygen.RSA2048.String(), syscall.EINVAL}}

	config, err := kbuild.OpenConfig(tree.config())
	if err != nil {
		t.Fatal(err)
	}
	before, after := imageKeyring(t, tree), imageKeyring(t, tree)
	facts := verify.ConfigFacts("", config.Bool)
	if err := errors.Join(before.Follow(facts), after.Follow(facts)); err != nil {
		t.Fatal(err)
	}
	var toAdd, modules []Case
	var certs []byte
	for _, a := range additions {
		cert := added[a.name].Certificate
		certs = append(certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		toAdd = append(toAdd, Case{Name: "add, " + a.name, Data: cert.Raw, Keyring: string(verify.Secondary)})
		modules = append(modules, Case{Name: "by " + a.name, Data: added.signed(t, a.name, modulePayload(t, tree))})
		if err := after.AddTo(verify.Secondary, cert, a.name); err != nil {
			t.Fatal(err)
		}
	}
	for _, known := range after.Known() {
		if i := slices.IndexFunc(additions, func(a addition) bool { return a.name == known.Source }); i >= 0 &&
			(known.Ring == verify.Secondary) != (additions[i].errno == 0) {
			t.Errorf("%s is predicted in %q: %s", known.Source, known.Ring, known.Problem)
		}
	}

	files := make(map[string]string)
	if full() { // it takes its time in an emulated machine
		files["modsign"], files["vmlinuz"], files["config"] = program(t), tree.Image(), tree.config()
		files["added.pem"] = testmod.WriteFile(t, "added.pem", certs)
	}
	boot := func(keys *verify.Keyring, adds []Case) {
		cases := slices.Concat(adds, modules)
		all := len(adds) > 0
		var verifies [][]string
		if full() {
			command := []string{"/modsign", "verify", "--running", "--kernel", "/vmlinuz", "--config", "/config", "--json"}
			for i := range modules {
				command = append(command, fmt.Sprintf("/cases/%d.ko", len(adds)+i))
			}
			verifies = [][]string{append(slices.Clone(command), "--secondary", "/added.pem"), command}
		}
		initrd := filepath.Join(t.TempDir(), "initrd")
		packGuest(t, initrd, cases, files, verifies)
		console := bootWith(t, tree.Image(), initrd, []string{"module.sig_enforce=1"})
		verdicts, err := parseConsole(console, cases)
		if err != nil {
			t.Fatalf("%v\n%s", err, tail(console))
		}
		judged := verdicts[len(adds):]
		results, _, err := fromLoader[result](console, "modsign-result")
		if err != nil || len(results) != len(verifies) {
			t.Fatal(results, err)
		}
		for i, v := range judged {
			r := verify.Module(bytes.NewReader(modules[i].Data), int64(len(modules[i].Data)), keys)
			if r.Errno != v.Errno || !logged(v.Log, r.Dmesg) || (v.Errno == 0) != (all && additions[i].errno == 0) {
				t.Errorf("%s: the kernel says %v and logs %q; verify says %s, %v, %q", v.Name, v.Errno, v.Log, r.Verdict, r.Errno,
					r.Dmesg)
			}
			t.Logf("%s: %v %q", v.Name, v.Errno, v.Log)
			if len(results) == 0 {
				continue
			}
			path := fmt.Sprintf("/cases/%d.ko", len(adds)+i)
			if said := guestVerdicts(t, results[0])[path]; said != string(r.Verdict) {
				t.Errorf("%s: verify --running --secondary says %q in the machine, want %s\n%s", v.Name, said, r.Verdict,
					results[0].Output)
			}
			// Without the certificates, verify does not know whose the added keys are.
			want := string(r.Verdict)
			if all {
				want = "unreadable"
			}
			if said := guestVerdicts(t, results[1])[path]; said != want {
				t.Errorf("%s: verify --running says %q in the machine, want %s\n%s", v.Name, said, want, results[1].Output)
			}
		}
		for i, v := range verdicts[:len(adds)] {
			if v.Errno != additions[i].errno {
				t.Errorf("%s: the kernel says %v and logs %q, expected %v", v.Name, v.Errno, v.Log, additions[i].errno)
			}
			t.Logf("%s: %v %q", v.Name, v.Errno, v.Log)
		}
	}
	boot(before, nil)
	boot(after, toAdd)
}

// guestVerdicts returns the verdicts of verify --json in a machine by the paths of the modules.
func guestVerdicts(t testing.TB, r result) map[string]string {
	t.Helper()
	verdicts := make(map[string]string)
	for line := range strings.Lines(r.Output) {
		var said struct {
			Type          string `json:"message_type"`
			Path, Verdict string
		}
		if !strings.HasPrefix(line, "{") {
			continue
		}
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if said.Type == "module" {
			verdicts[said.Path] = said.Verdict
		}
	}
	return verdicts
}
